"""`meterctl jobs`: long work that nodes do in the background.

Other commands start a job with `begin_job` on the `first_answering` node, and wait for it with
`await_job`.
"""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from meterd.commands.console import Listing, Progress, Row, field_lines
from meterd.commands.moments import format_duration, format_moment
from meterd.commands.session import (
    AdminError,
    AdminGroup,
    Session,
    admin_error_of,
    command,
    exit_with,
)
from meterd.commands.tables import Column, group_thousands
from meterd.exits import AdminExit
from meterd.protocol.errors import MeterdError

if TYPE_CHECKING:
    from meterd.client import Client

WAIT_TIMEOUT_DEFAULT = 60.0
POLL_SECONDS = 0.1
ENDED = ("done", "failed", "cancelled")
# How errors of jobs end the program; any other is a plain no.
_EXIT_OF_ERROR = {"corrupt": AdminExit.CORRUPT, "disk_full": AdminExit.NO_SPACE}


@click.group("jobs", cls=AdminGroup)
def jobs() -> None:
    """List, show, await and cancel jobs: long work in the background of a node."""


def _percent(job: Row) -> str:
    return f"{100 * job['progress']:.0f}%"


def _cells(job: Row) -> list[str]:
    eta, error = job["eta_seconds"], job["error"]
    return [
        str(job["id"]),
        job["kind"],
        job["state"],
        _percent(job),
        "-" if job["started"] is None else format_moment(job["started"]),
        "-" if eta is None else format_duration(eta),
        f"{error['code']}: {error['message']}" if error else "-",
    ]


LISTING = Listing(
    "jobs",
    [
        Column("ID", right=True),
        Column("KIND"),
        Column("STATE"),
        Column("DONE", right=True),
        Column("STARTED"),
        Column("ETA", right=True),
        Column("ERROR", elastic=True),
    ],
    _cells,
)


def ask(client: "Client", kind: str, **fields: Any) -> dict[str, Any]:
    """Send one request of an administrator; its answer."""
    from meterd.client import questions

    return client.run(questions.ask(kind, fields))


def first_answering(session: Session) -> Session:
    """The session with that node alone: a job is one node's, and so is what is asked about it.

    When none answers at a look it is the first, which then has all the time there is.
    """
    each = session.each_node()
    if len(each) > 1:
        for one in each:
            with suppress(MeterdError), one.looking().connect() as client:
                ask(client, "job_list")
                return one
    return each[0]


def begin_job(session: Session, kind: str, **fields: Any) -> Row:
    """Ask a node to begin a job, once; the job."""
    try:
        with session.connect() as client:
            job: Row = ask(client, kind, **fields)["job"]
    except MeterdError as error:
        if error.code not in ("unreachable", "deadline_exceeded", "restarting"):
            raise
        known = admin_error_of(error)
        raise AdminError(
            known.exit_code, known.code, known.message,
            "it may have begun, and the same again would begin another: meterctl jobs list",
        ) from error
    return job


def show_job(session: Session, job: Row) -> None:
    """Show one job."""
    session.console.show({"job": job}, lambda: _lines(job))


def _lines(job: Row) -> list[str]:
    fields = [(name, str(job[name])) for name in ("id", "kind", "state")]
    fields.append(("done", _percent(job)))
    for name in ("asked", "started", "finished"):
        if job[name] is not None:
            fields.append((name, format_moment(job[name])))
    if job["eta_seconds"] is not None:
        fields.append(("eta", format_duration(job["eta_seconds"])))
    if job["error"]:
        fields.append(("error", f"{job['error']['code']}: {job['error']['message']}"))
        fields.append(("hint", job["error"]["hint"]))
    fields += [(name, _text(value)) for name, value in (job["result"] or {}).items()]
    return field_lines(fields)


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return group_thousands(value)
    return str(value)


def await_job(session: Session, job: Row, patience: float) -> dict[str, Any]:
    """Wait until a job has ended; the job. Raises AdminError when the time is over."""
    deadline, progress = time.monotonic() + patience, Progress()
    try:
        with session.connect() as client:
            while job["state"] not in ENDED:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AdminError(
                        AdminExit.RUNNING,
                        "running",
                        f"job {job['id']} has not ended within {patience:g} s; it goes on",
                        f"meterctl -n {','.join(session.nodes)} jobs wait {job['id']}",
                    )
                progress.update(f"{job['kind']}: {_percent(job)}")
                time.sleep(min(POLL_SECONDS, left))
                job = ask(client, "job_show", id=job["id"])["job"]
    finally:
        progress.clear()
    return dict(job)


def exit_of_job(job: Row) -> AdminExit:
    """The exit code that says why a job did not do its work, or that it did."""
    code = job["error"]["code"] if job["error"] else ""
    return AdminExit.GOOD if job["state"] == "done" else _EXIT_OF_ERROR.get(code, AdminExit.NO)


def end_with(job: Row) -> None:
    """End the program with a code that says why, when the job did not do its work."""
    exit_with([exit_of_job(job)])


@command("list", short_help="List the jobs.")
@click.option("--state", type=click.Choice(["waiting", "running", *ENDED]),
              help="Only those in this state.")
def list_jobs(session: Session, state: str | None) -> None:
    """List the jobs that wait, run or have ended, the newest first.

    A node forgets its jobs when it stops, and old ones when there are many.
    """
    with session.connect() as client:
        found = ask(client, "job_list")["jobs"]
    rows = [job for job in found if state in (None, job["state"])]
    session.console.show_listing(LISTING, rows)


@command("show", short_help="Show one job.")
@click.argument("id", type=click.IntRange(0))
def show(session: Session, id: int) -> None:
    """Show the job ID: how far it is, or what became of it. Exit code 5 when there is none."""
    with session.connect() as client:
        show_job(session, ask(client, "job_show", id=id)["job"])


@command("wait", short_help="Wait until a job has ended.")
@click.argument("id", type=click.IntRange(0))
def wait(session: Session, id: int) -> None:
    """Wait until the job ID has ended, at most --timeout seconds (60 by default).

    Exit code 0: it is done; 1: it failed or was cancelled; 5: there is none; 8: it still runs;
    9: it found damage; 11: it found no disk space.
    """
    with session.connect() as client:
        job = ask(client, "job_show", id=id)["job"]
    job = await_job(session, job, session.patience(WAIT_TIMEOUT_DEFAULT))
    show_job(session, job)
    end_with(job)


@command("cancel", short_help="Cancel a job.")
@click.argument("id", type=click.IntRange(0))
def cancel(session: Session, id: int) -> None:
    """Cancel the job ID. It ends at the next place where nothing is half done.

    Exit code 5 when there is none; a job that has ended stays as it is.
    """
    with session.connect() as client:
        show_job(session, ask(client, "job_cancel", id=id)["job"])


for _command in (list_jobs, show, wait, cancel):
    jobs.add_command(_command)


def run_or_still_running(session: Session, kind: str, **fields: Any) -> dict[str, Any]:
    """Ask for what may take long; exit code 8 when the time is over, for the node goes on."""
    patience = session.patience(WAIT_TIMEOUT_DEFAULT)
    try:
        with session.connect(patience) as client:
            return ask(client, kind, **fields)
    except MeterdError as error:
        if error.code != "deadline_exceeded":
            raise
        raise AdminError(
            AdminExit.RUNNING, "running", f"not done within {patience:g} s; it goes on",
            "--timeout SECONDS waits longer",
        ) from error

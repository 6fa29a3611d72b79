"""`meterctl compact`: merge small segments, and see what there is to merge."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from meterd.commands.console import Row, field_lines, warn
from meterd.commands.jobs import (
    LISTING,
    ask,
    await_job,
    begin_job,
    end_with,
    exit_of_job,
    first_answering,
    show_job,
)
from meterd.commands.moments import format_duration
from meterd.commands.session import (
    AdminError,
    AdminGroup,
    Session,
    admin_error_of,
    command,
    exit_with,
)
from meterd.commands.storage import format_size
from meterd.commands.tables import group_thousands
from meterd.exits import AdminExit
from meterd.protocol.errors import MeterdError

TIMEOUT_DEFAULT = 300.0


@click.group("compact", cls=AdminGroup, default="run")
def compact() -> None:
    """Merge small segments into large ones, which a node also does by itself.

    `meterctl compact` is short for `meterctl compact run`.
    """


@command("run", short_help="Merge now (the default).")
@click.option("--all", "every", is_flag=True, help="On every node that --nodes names.")
@click.option("--aggressive", is_flag=True,
              help="Merge whatever fits one file.")
@click.option("--no-wait", is_flag=True, help="Only start the job.")
@click.option("--compact-timeout", type=click.FloatRange(0.001), default=TIMEOUT_DEFAULT,
              show_default=True, metavar="SECONDS", help="How long to wait for each node.")
def run(
    session: Session, every: bool, aggressive: bool, no_wait: bool, compact_timeout: float
) -> None:
    """Merge neighbouring segments of like size, however few they are.

    Rows of erased accounts are left out; a segment that holds some is written again also alone.

    Without --all the first node that can be reached does it. Exit code 0: done; 1: it failed or
    was cancelled; 7: with --all, some nodes do not answer; 8: the time is over and the job goes on;
    9: a segment is damaged; 11: there is too little space.
    """
    if every:
        _run_everywhere(session, aggressive, no_wait, compact_timeout)
        return
    one = first_answering(session)
    job = _start(one, aggressive)
    if not no_wait:
        job = await_job(one, job, compact_timeout)
    show_job(session, job)
    if not no_wait:
        end_with(job)


def _start(session: Session, aggressive: bool) -> Row:
    return begin_job(session, "compact", aggressive=aggressive)


def _run_everywhere(session: Session, aggressive: bool, no_wait: bool, patience: float) -> None:
    """Let every node do it; one that does not answer keeps no other from it."""
    begun: list[tuple[Session, Row]] = []
    codes: list[AdminExit] = []
    for one in session.each_node():
        with _others_go_on(one, codes):
            begun.append((one, _start(one, aggressive)))
    jobs = [job for _, job in begun]
    if not no_wait:
        for number, (one, job) in enumerate(begun):
            with _others_go_on(one, codes):
                jobs[number] = await_job(one, job, patience)
                codes.append(exit_of_job(jobs[number]))
    session.console.show_listing(LISTING, jobs)
    failed = [code for code in codes if code is not AdminExit.GOOD]
    silent = AdminExit.UNREACHABLE in failed
    if silent and begun:
        failed = [AdminExit.PARTLY if c is AdminExit.UNREACHABLE else c for c in failed]
    exit_with(failed)


@contextmanager
def _others_go_on(session: Session, codes: list[AdminExit]) -> Iterator[None]:
    """Say what went wrong at a node, and remember its exit code."""
    try:
        yield
    except (AdminError, MeterdError) as error:
        known = error if isinstance(error, AdminError) else admin_error_of(error)
        codes.append(known.exit_code)
        warn(f"{', '.join(session.nodes)}: {known.code}: {known.message}")


@command("status", short_help="Show what there is to merge.")
def status(session: Session) -> None:
    """Show how many segments there are, how many wait to be merged, and the last job."""
    with session.connect() as client:
        answer = ask(client, "compact_status")
    session.console.show(answer, lambda: _lines(answer))


def _lines(answer: Row) -> list[str]:
    job, last = answer["job"], answer["last"]
    old = f"{answer['superseded']}, {format_size(answer['superseded_bytes'])}"
    return field_lines([
        ("by itself", "yes" if answer["enabled"] else "no"),
        ("segments", f"{answer['segments']}, {format_size(answer['bytes'])}"),
        ("events", group_thousands(answer["events"])),
        ("to be merged", str(answer["pending"])),
        ("merged, kept", old if answer["superseded"] else ""),
        ("left alone", f"{answer['avoided']}, because merging failed" if answer["avoided"] else ""),
        ("job", f"{job['id']}, {100 * job['progress']:.0f}% done" if job else ""),
        ("last job", f"{last['id']}, {last['state']}" if last else ""),
        ("next run", f"in {format_duration(answer['next_run_seconds'])}"),
    ])


for _command in (run, status):
    compact.add_command(_command)

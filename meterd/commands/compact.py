"""`meterctl compact`: merge small segments, and see what there is to merge."""

from typing import Any

import click

from meterd.commands.console import Row, field_lines
from meterd.commands.jobs import LISTING, ask, await_job, exit_of_job, show_job
from meterd.commands.moments import format_duration
from meterd.commands.session import AdminGroup, Session, command, exit_with
from meterd.commands.storage import format_size
from meterd.commands.tables import group_thousands

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
    was cancelled; 8: the time is over and the job goes on; 9: a segment is damaged; 11: there is
    too little space.
    """
    sessions = session.each_node() if every else [session]
    jobs: list[Any] = []
    for one in sessions:
        with one.connect() as client:
            jobs.append(ask(client, "compact", aggressive=aggressive)["job"])
    if not no_wait:
        jobs = [
            await_job(one, job, compact_timeout) for one, job in zip(sessions, jobs, strict=True)
        ]
    if every:
        session.console.show_listing(LISTING, jobs)
    else:
        show_job(session, jobs[0])
    if not no_wait:
        exit_with(map(exit_of_job, jobs))


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

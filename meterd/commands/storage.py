"""`meterctl checkpoint`, `retention` and `wal`: what a node keeps on its disk, and for how long."""

import time
from collections.abc import Iterator

import click

from meterd.commands.console import Row, field_lines
from meterd.commands.jobs import (
    WAIT_TIMEOUT_DEFAULT,
    ask,
    await_job,
    begin_job,
    end_with,
    first_answering,
    run_or_still_running,
    show_job,
)
from meterd.commands.moments import format_duration, format_moment
from meterd.commands.session import AdminGroup, Session, command
from meterd.commands.tables import Column, group_thousands, render
from meterd.protocol.limits import RETENTION_DAYS_MAX

POLL_SECONDS = 0.05
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_size(size: float) -> str:
    """Bytes for people."""
    for unit in UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {UNITS[-1]}"


@command("checkpoint", short_help="Save a checkpoint now.")
def checkpoint(session: Session) -> None:
    """Save a checkpoint now, and wait until it is durable, at most --timeout seconds (60).

    A start then replays only what comes later. Exit code 8: it is still being saved.
    """
    saved = run_or_still_running(session, "checkpoint")
    session.console.show(saved, lambda: field_lines([
        ("saved", format_moment(saved["saved_at"])),
        ("records", group_thousands(saved["records"])),
        ("events", group_thousands(saved["events"])),
        ("position", f"log file {saved['file_number']}, offset {saved['offset']}"),
        ("size", format_size(saved["bytes"])),
        ("took", f"{saved['seconds']:.3f} s"),
    ]))


@click.group("retention", cls=AdminGroup, default="show")
def retention() -> None:
    """Show, change and apply for how many days events are kept.

    `meterctl retention` is short for `meterctl retention show`.
    """


@command("show", short_help="Show for how long events are kept (the default).")
def show_retention(session: Session) -> None:
    """Show for how many days events are kept, and how much of the log is past that."""
    with session.connect() as client:
        answer = ask(client, "retention_show")
    session.console.show(answer, lambda: _retention_lines(answer))


def _retention_lines(answer: Row) -> list[str]:
    origin = "set by retention set" if answer["origin"] == "command" else "option retention.days"
    oldest = answer["oldest_event"]
    return field_lines([
        ("days", f"{answer['days']} ({origin})"),
        ("horizon", format_moment(answer["horizon"])),
        ("oldest event", "-" if oldest is None else format_moment(oldest)),
        ("log files", f"{group_thousands(answer['files'])}, {format_size(answer['bytes'])}"),
        ("expired", _extent_text(answer["expired"])),
        ("held", _held_text(answer["expired"]["held"])),
        ("nothing expires until",
         format_moment(answer["held_until"]) if answer["held_until"] else ""),
        ("clock", _clock_text(answer["clock"]) if answer["clock"] else ""),
        ("next run", f"in {format_duration(answer['next_run_seconds'])}"),
    ])


def _clock_text(clock: Row) -> str:
    return (f"showed {format_moment(clock['shown'])} at {format_moment(clock['believed'])}, and is"
            " not believed: meterctl retention run --accept-clock if it is right")


def _extent_text(extent: Row) -> str:
    files, events = group_thousands(extent["files"]), group_thousands(extent["events"])
    return f"{files} files, {format_size(extent['bytes'])}, {events} events"


def _held_text(held: Row) -> str:
    return ", ".join(f"{count} by {holder}" for holder, count in held.items())


@command("set", short_help="Change for how many days events are kept.")
@click.argument("days", type=click.IntRange(1, RETENTION_DAYS_MAX))
def set_retention(session: Session, days: int) -> None:
    """Keep events for DAYS days from now on, on every node and over restarts.

    It goes before the option retention.days. More days never bring back what has expired: the
    horizon does not move back. Fewer days expire events at once, so this asks first; --yes answers.
    """
    with session.connect() as client:
        before = ask(client, "retention_show")
        if days < before["days"]:
            session.confirm(
                f"Keep events for {days} days instead of {before['days']}?"
                " Older ones expire at once and for good."
            )
        answer = ask(client, "retention_set", days=days)
    document = {**answer, "previous_days": before["days"]}
    session.console.show(document, lambda: field_lines([
        ("days", f"{days}, before {before['days']}"),
        ("horizon", format_moment(answer["horizon"])),
    ]))


@command("run", short_help="Delete what is past the retention now.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be deleted.")
@click.option("--accept-clock", is_flag=True,
              help="Believe the node's clock, although it is far ahead of what is known.")
def run_retention(session: Session, dry_run: bool, accept_clock: bool) -> None:
    """Delete the log files that are past the retention, or that nothing needs, now.

    A file that something holds stays; `meterctl wal status --holders` tells what. After a node was
    off for long, or its clock was set, nothing expires by its clock for retention.clock_jump_max:
    --accept-clock says that it is right. It asks first; --yes answers.
    """
    if accept_clock:
        if dry_run:
            raise click.UsageError("--accept-clock and --dry-run exclude each other")
        _accept_clock(session)
    answer = run_or_still_running(session, "retention_run", dry_run=dry_run)
    verb = "would delete" if dry_run else "deleted"
    session.console.show(answer, lambda: field_lines([
        (verb, _extent_text(answer)),
        ("remaining", str(answer["remaining"]) if answer["remaining"] else ""),
        ("held", _held_text(answer["held"])),
        ("horizon", format_moment(answer["horizon"])),
    ]))


def _accept_clock(session: Session) -> None:
    """Have the node expire by what its clock shows."""
    with session.connect() as client:
        clock = ask(client, "retention_show")["clock"]
        if clock is not None:
            session.confirm(
                f"Is the node's clock right, which showed {format_moment(clock['shown'])} where"
                f" {format_moment(clock['believed'])} was known? What is past the retention by it"
                " expires at once and for good."
            )
        horizon = ask(client, "clock_accept")["horizon"]
        # The actor that deletes hears of it at about the same time.
        give_up = time.monotonic() + session.timeout
        while ask(client, "retention_show")["horizon"] < horizon and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)


for _command in (show_retention, set_retention, run_retention):
    retention.add_command(_command)


@click.group("wal", cls=AdminGroup, default="status")
def wal() -> None:
    """Look at the log files, and archive them.

    `meterctl wal` is short for `meterctl wal status`.
    """


@command("status", short_help="Show the log files and what holds them (the default).")
@click.option("--holders", is_flag=True, help="Show each file with what keeps it from deletion.")
def wal_status(session: Session, holders: bool) -> None:
    """Show how many log files there are, what keeps them, and what waits for the archive."""
    with session.connect() as client:
        answer = ask(client, "wal_status", holders=holders)
        answer["position"] = client.status()["log"]
    session.console.show(answer, lambda: _wal_lines(answer))


def _wal_lines(answer: Row) -> Iterator[str]:
    place, archive = answer["position"], answer["archive"]
    numbers = "none" if answer["files"] == 0 else f"{answer['first']} to {answer['last']}"
    yield from field_lines([
        ("full files", f"{group_thousands(answer['files'])}, {format_size(answer['bytes'])}"),
        ("numbers", numbers),
        ("oldest", format_moment(answer["oldest"]) if answer["files"] else ""),
        ("position", f"log file {place['file_number']}, offset {place['offset']}"),
        *_archive_fields(archive),
    ])
    if answer["held"]:
        yield ""
        columns = [Column("HELD BY"), Column("FILES", right=True), Column("SIZE", right=True)]
        rows = ([row["holder"], str(row["files"]), format_size(row["bytes"])]
                for row in answer["held"])
        yield from render(columns, rows, None, False)
    if answer["pins"]:
        yield ""
        columns = [Column("PIN"), Column("FROM FILE", right=True), Column("EXPIRES")]
        rows = ([pin["name"], str(pin["first_file"]), format_moment(pin["expires"])]
                for pin in answer["pins"])
        yield from render(columns, rows, None, False)
    if answer.get("segments"):
        yield ""
        columns = [Column("FILE", right=True), Column("SIZE", right=True), Column("FULL SINCE"),
                   Column("HELD BY")]
        yield from render(columns, map(_file_cells, answer["segments"]), None, False)


def _archive_fields(archive: Row) -> list[tuple[str, str]]:
    if not archive["target"]:
        return [("archive", "off")]
    failure, success = archive["last_failure"], archive["last_success"]
    waits = f"{archive['queue_files']} files, {format_size(archive['queue_bytes'])}"
    return [
        ("archive", archive["target"]),
        ("archived", f"through file {archive['through']}"),
        ("waiting", waits),
        ("gaps", ", ".join(f"{first} to {last}" for first, last in archive["gaps"])),
        ("last success", "-" if success is None else format_moment(success)),
        ("last failure", _failure_text(failure) if failure else ""),
    ]


def _failure_text(failure: Row) -> str:
    return (f"{format_moment(failure['time'])} file {failure['number']}:"
            f" {failure['result']}: {failure['message']}")


def _file_cells(row: Row) -> list[str]:
    held = ", ".join(row["held_by"]) or "nothing"
    return [str(row["number"]), format_size(row["bytes"]), format_moment(row["sealed"]), held]


@command("archive", short_help="Archive what waits, now.")
@click.option("--no-wait", is_flag=True, help="Only start the job.")
def wal_archive(session: Session, no_wait: bool) -> None:
    """Archive the full log files that wait, however many attempts have failed before.

    Waits at most --timeout seconds (60). Exit code 1: it failed; 5: there is no archive; 8: it
    still runs.
    """
    one = first_answering(session)
    job = begin_job(one, "wal_archive")
    if not no_wait:
        job = await_job(one, job, session.patience(WAIT_TIMEOUT_DEFAULT))
    show_job(session, job)
    if not no_wait:
        end_with(job)


for _command in (wal_status, wal_archive):
    wal.add_command(_command)

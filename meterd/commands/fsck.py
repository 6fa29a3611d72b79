"""`meterctl fsck`: checks the data directory of a node that is stopped."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from meterd.commands.console import Row, field_lines, warn
from meterd.commands.session import AdminError, Session, command
from meterd.commands.tables import Column, group_thousands
from meterd.exits import AdminExit
from meterd.protocol.errors import Busy

LEVELS = ("quick", "full")
COLUMNS = (
    Column("CHECK"),
    Column("RESULT"),
    Column("SECONDS", right=True),
    Column("FILE"),
    Column("OFFSET", right=True),
    Column("REASON"),
)
# The worst first; what is only worth a note is no reason for a bad ending.
_EXITS = {
    "newer": AdminExit.REFUSED,
    "damage": AdminExit.CORRUPT,
    "warning": AdminExit.NO,
    "note": AdminExit.GOOD,
}


@command("fsck", short_help="Check the data directory of a stopped node.")
@click.option("--data-dir", required=True, metavar="DIR", help="The directory.")
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="quick",
    show_default=True,
    help="quick: what a start checks; full: every byte of every file.",
)
@click.option(
    "--rebuild-identities",
    is_flag=True,
    help="Write the identities anew, from segments and log files, when they are lost.",
)
def fsck(session: Session, data_dir: str, level: str, rebuild_identities: bool) -> None:
    """Check the data directory of a node that is stopped, on this machine.

    The checks are those of a start, in the same order, and then others; all damage is found, not
    only the first, and nothing is changed. Exit code 0: clean; 1: warnings; 5: no such directory;
    6: a node uses it, or a newer version wrote it; 9: damage.

    --rebuild-identities is for a node that does not start because a run or part of identities is
    damaged or missing. It writes new ones, and a checkpoint that names them.
    """
    from meterd.actors.checking import fsck as checks

    try:
        with checks.locked(data_dir), _silence():
            if rebuild_identities:
                _rebuild(session, data_dir)
            else:
                _check(session, data_dir, level)
    except Busy as busy:
        raise AdminError(AdminExit.REFUSED, "refused", busy.message, "stop the node") from None


@contextmanager
def _silence() -> Iterator[None]:
    """Keep code that is shared with a start from logging: what it finds is in the result."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _check(session: Session, data_dir: str, level: str) -> None:
    from meterd.actors.checking import fsck as checks

    rows: list[dict[str, Any]] = []
    for check in checks.Fsck(data_dir, level).run():  # type: ignore[arg-type]
        findings = [finding._asdict() for finding in check.findings]
        worst = _worst(findings)
        rows.append(
            {
                "check": check.name,
                "result": worst or "ok",
                "seconds": round(check.seconds, 3),
                "findings": findings,
            }
        )
    worst = _worst([finding for row in rows for finding in row["findings"]])
    document = {"data_dir": data_dir, "level": level, "result": worst or "clean", "checks": rows}
    if session.console.is_table:
        session.console.write_table(COLUMNS, _table(rows))
    else:
        session.console.show(document, list)
    if worst is not None and _EXITS[worst]:
        raise SystemExit(int(_EXITS[worst]))


def _worst(findings: list[dict[str, Any]]) -> str | None:
    present = {finding["severity"] for finding in findings}
    return next((severity for severity in _EXITS if severity in present), None)


def _table(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        if not row["findings"]:
            yield [row["check"], row["result"], f"{row['seconds']:.3f}", "", "", ""]
        for finding in row["findings"]:
            offset = finding["offset"]
            yield [
                row["check"],
                finding["severity"],
                f"{row['seconds']:.3f}",
                finding["file"],
                "" if offset is None else str(offset),
                finding["reason"],
            ]


def _rebuild(session: Session, data_dir: str) -> None:
    from meterd.actors.checking import identity_rebuild

    session.confirm(f"Write the identities of {data_dir} anew?")
    done = identity_rebuild.rebuild(data_dir, warn)
    document: Row = {
        "damage": done.damage.message,
        "checkpoint": done.checkpoint,
        "identities": done.identities,
        "named_before": done.named,
        "files": done.files,
        "lacks_erased": done.lacks_erased,
    }
    if done.lacks_erased:
        warn("events of erased accounts are gone: their ids are not known any more")
    session.console.show(
        document,
        lambda: field_lines(
            [
                ("damage", done.damage.message),
                ("checkpoint", done.checkpoint),
                ("identities", group_thousands(done.identities)),
                ("named before", group_thousands(done.named)),
                ("files", ", ".join(done.files)),
            ]
        ),
    )

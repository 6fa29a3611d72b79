"""`meterctl backup`: made by a node; listed, verified and pruned wherever the backups lie."""

import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from meterd.commands.console import Listing, Progress, Row, warn
from meterd.commands.durations import parse_duration
from meterd.commands.jobs import ask, await_job, begin_job, first_answering
from meterd.commands.moments import format_moment
from meterd.commands.session import AdminError, AdminGroup, Session, command, exit_of
from meterd.commands.tables import Column, format_bytes, group_thousands, number_or_dash
from meterd.exits import AdminExit
from meterd.protocol.errors import MeterdError
from meterd.protocol.limits import NODE_MAX

if TYPE_CHECKING:
    from meterd.actors.backups.shelf import Contents, Shelf
    from meterd.actors.backups.verifying import Finding

FROM_VARIABLE = "METERCTL_BACKUPS"
# A backup is waited for so long unless --timeout says otherwise.
PATIENCE_SECONDS = 7 * 86_400.0
LEVELS = ("manifest", "checksum", "replay")



def _source(_ctx: click.Context, _param: click.Parameter, source: str | None) -> str:
    if not source:
        raise click.UsageError(f"say where the backups lie: --from DIR|URL, or {FROM_VARIABLE}")
    return source


from_option = click.option("--from", "source", envvar=FROM_VARIABLE, callback=_source,
                           metavar="DIR|URL", help=f"Where the backups lie [env: {FROM_VARIABLE}].")
name_option = click.option("--backup", "name", metavar="NAME", help="This backup.")
node_option = click.option("--node", type=click.IntRange(0, NODE_MAX), metavar="N",
                           help="Of this node's backups [default: the data directory's].")
scratch_option = click.option("--scratch", metavar="DIR",
                              help="Where there is room for a copy [default: the system's].")
tell_option = click.option("--tell", is_flag=True,
                           help="Tell the nodes the result, for their telemetry.")


@click.group("backup", cls=AdminGroup)
def backup() -> None:
    """Make, list, verify and prune backups."""


def whole_target(text: str) -> str:
    """A directory as the node can find it, or a URL."""
    return text if "://" in text else os.path.abspath(text)


def configured_directory() -> str:
    """The data directory of this machine's configuration."""
    from meterd import config

    return config.load({}, os.environ, None).node.data_dir


def open_shelf(source: str) -> "tuple[Shelf, Contents]":
    """The backups of a directory or URL, and what is there."""
    from meterd.actors.backups.shelf import Shelf

    shelf = Shelf.at(whole_target(source))
    return shelf, shelf.contents()


@command("create", short_help="Make a backup while the node serves.")
@click.option("--to", required=True, metavar="DIR|URL",
              help="Where it goes: a directory of the node's machine, or s3://BUCKET/PREFIX.")
@click.option("--type", "backup_type", type=click.Choice(["full", "incr"]), default="full",
              show_default=True, help="Everything, or what the backups there do not hold yet.")
def create(session: Session, to: str, backup_type: str) -> None:
    """Make a backup of the node, consistent at one position of its log, and wait for it.

    Of several nodes in --nodes it is the first that answers. An incremental one without a backup
    to build on becomes a full one. Exit code 8 when --timeout
    is over first: the backup goes on.
    """
    one = first_answering(session)
    job = begin_job(one, "backup_create", to=whole_target(to), type=backup_type)
    job = await_job(one, job, session.patience(PATIENCE_SECONDS))
    error = job["error"]
    if error:
        raise AdminError(exit_of(error["code"]), error["code"], error["message"], error["hint"])
    if job["state"] != "done":
        raise AdminError(AdminExit.NO, job["state"], f"the backup was {job['state']}")
    made = job["result"]
    session.console.show(made, lambda: [
        f"{made['name']}: {group_thousands(made['events'])} events,"
        f" {format_bytes(made['size'])} in {made['files']} files,"
        f" {format_bytes(made['written'])} written, {made['seconds']} s"
    ])


_LISTING = Listing(
    "backups",
    [
        Column("NAME"),
        Column("TYPE"),
        Column("CUT"),
        Column("EVENTS", right=True),
        Column("SIZE", right=True),
        Column("OWN", right=True),
        Column("STATE"),
        Column("PARENT", elastic=True, dim=True),
    ],
    lambda row: (
        row["name"],
        row["type"] or "-",
        format_moment(row["cut_time"]) if row["cut_time"] else "-",
        number_or_dash(row["events"]),
        "-" if row["size"] is None else format_bytes(row["size"]),
        "-" if row["written"] is None else format_bytes(row["written"]),
        row["state"],
        row["parent"] or row["problem"] or "",
    ),
)


@command("list", short_help="List the backups in a directory or bucket.")
@from_option
@click.option("--max-age", callback=parse_duration, metavar="DURATION",
              help="Exit code 1 unless a whole backup is younger, such as 26h.")
def list_backups(session: Session, source: str, max_age: int | None) -> None:
    """List the backups, the newest first, with what is unfinished or broken.

    Exit code 9 when one is broken, 1 when none is young enough.
    """
    _, contents = open_shelf(source)
    rows = list(_rows(contents))
    session.console.show_listing(_LISTING, rows)
    if contents.broken:
        raise SystemExit(AdminExit.CORRUPT)
    if max_age is not None:
        limit = time.time_ns() - max_age * 1_000_000_000
        if not any(row["state"] == "whole" and row["cut_time"] >= limit for row in rows):
            raise SystemExit(AdminExit.NO)


def _rows(contents: "Contents") -> list[Row]:
    from meterd.core.housekeeping.backup_plan import newest_first

    empty = dict.fromkeys(("type", "parent", "node_id", "cut_time", "position", "events", "size",
                           "written", "problem"))
    rows: list[Row] = []
    for one in newest_first(contents.manifests.values()):
        missing = [name for name in one.chain if name not in contents.manifests]
        rows.append({
            "name": one.name,
            "state": "whole" if not missing else "chain broken",
            "type": one.type,
            "parent": one.parent,
            "node_id": one.node_id,
            "cut_time": one.cut.taken,
            "position": str(one.cut.sequence),
            "events": one.events,
            "size": one.size,
            "written": one.own_size,
            "problem": f"{missing[0]} is missing" if missing else None,
        })
    rows += [{**empty, "name": name, "state": "broken", "problem": problem}
             for name, problem in contents.broken.items()]
    rows += [{**empty, "name": name, "state": "unfinished"} for name in contents.partial]
    return rows


@command("verify", short_help="Find out whether backups are what they were.")
@from_option
@name_option
@click.option("--level", type=click.Choice(LEVELS), default="checksum", show_default=True,
              help="manifest: all files are there; checksum: and unchanged; replay: and give back "
                   "every event.")
@scratch_option
@tell_option
def verify(session: Session, source: str, name: str | None, level: Any,
           scratch: str | None, tell: bool) -> None:
    """Verify all backups, or the one named.

    Exit code 9 when something is wrong; each file is named. The level replay restores each backup
    into a scratch directory, replays its log and compares its control totals.
    """
    from meterd.actors.backups.verifying import Verification

    shelf, contents = open_shelf(source)
    progress = Progress()
    verification = Verification(shelf, contents, scratch, progress.update)
    names = [name] if name else sorted({*contents.manifests, *contents.broken})
    if not names or (name and name not in {*contents.manifests, *contents.broken}):
        raise AdminError(AdminExit.NOT_FOUND, "not_found", f"there is no backup {name or ''}")
    results = []
    for each in names:
        began = time.monotonic()
        findings = verification.verify(each, level)
        results.append(_result(each, findings, time.monotonic() - began))
    progress.clear()
    document = {"level": level, "backups": results}
    session.console.show(document, lambda: _verify_lines(results, level), "backups")
    broken = sum(not row["good"] for row in results)
    if tell:
        counts = {} if name else {"present": len(results), "broken": broken}
        tell_nodes(session, proof=level, good=not broken, **counts)
    if broken:
        raise SystemExit(AdminExit.CORRUPT)


def tell_nodes(session: Session, **report: Any) -> None:
    """Tell each node how its backups were proved; that one cannot be told changes no result."""
    for each in session.each_node():
        try:
            with each.connect() as client:
                ask(client, "backup_report", **report)
        except MeterdError as error:
            warn(f"{', '.join(each.nodes)} was not told: {error}")


def _result(name: str, findings: "list[Finding]", seconds: float) -> dict[str, Any]:
    return {
        "name": name,
        "good": not findings,
        "seconds": round(seconds, 3),
        "findings": [{"file": one.file, "problem": one.problem} for one in findings],
    }


def _verify_lines(results: list[dict[str, Any]], level: str) -> list[str]:
    lines = []
    for row in results:
        lines.append(f"{row['name']}: {'good' if row['good'] else 'DAMAGED'} ({level})")
        lines += [f"  {one['file']}: {one['problem']}" for one in row["findings"]]
    return lines


@command("prune", short_help="Delete backups that no rule keeps.")
@from_option
@click.option("--keep-daily", type=click.IntRange(0), default=7, show_default=True,
              help="Keep the newest of each of so many days.")
@click.option("--keep-weekly", type=click.IntRange(0), default=4, show_default=True,
              help="And of so many weeks.")
@click.option("--keep-monthly", type=click.IntRange(0), default=0, show_default=True,
              help="And of so many months.")
@click.option("--min-keep", type=click.IntRange(1), default=2, show_default=True,
              help="Keep at least so many.")
@click.option("--partial-age", callback=parse_duration, default="1d", show_default=True,
              metavar="DURATION", help="Delete unfinished ones that were begun so long ago.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
def prune(session: Session, source: str, partial_age: int, dry_run: bool, **rules: int) -> None:
    """Delete backups that no rule keeps, and what was never finished.

    What a kept backup needs stays, and so does the newest. Nothing is deleted while a backup that
    stays is damaged (exit code 6). Asks first; --yes answers.
    """
    from meterd.actors.backups.verifying import Verification
    from meterd.core.housekeeping.backup_plan import KeepRules
    from meterd.core.housekeeping.backup_plan import prune as decide

    shelf, contents = open_shelf(source)
    keep = KeepRules(**{key.removeprefix("keep_"): n for key, n in rules.items()
                        if key != "min_keep"}, min_keep=rules["min_keep"])
    verdicts = decide(contents.manifests, keep)
    old = [name for name in contents.partial if _age(name) >= partial_age]
    verification = Verification(shelf, contents, None, lambda _: None)
    damaged = [finding for one in verdicts if one.keep
               for finding in verification.verify(one.name, "manifest")]
    if contents.broken or damaged:
        bad = damaged[0].file if damaged else min(contents.broken)
        raise AdminError(AdminExit.REFUSED, "refused",
                         f"nothing is deleted while a backup is damaged: {bad}",
                         "meterctl backup verify shows it; move it away")
    going = [one.name for one in verdicts if not one.keep]
    if (going or old) and not dry_run:
        session.confirm(f"Delete {len(going)} backups and {len(old)} unfinished ones?")
        # The newest first: what is left of a chain is always its beginning.
        for name in [*going, *old]:
            shelf.remove(name)
    action = "would be deleted" if dry_run else "deleted"
    rows = [{"name": one.name, "action": "kept" if one.keep else action, "reason": one.reason}
            for one in verdicts]
    rows += [{"name": name, "action": action, "reason": "unfinished"} for name in old]
    session.console.show_listing(_PRUNED, rows)


_PRUNED = Listing(
    "backups",
    [Column("NAME"), Column("ACTION"), Column("REASON", elastic=True)],
    lambda row: (row["name"], row["action"], row["reason"]),
)


def _age(name: str) -> float:
    """Seconds since an unfinished backup was begun, by its name; without a time, for ever."""
    for part in name.split("-"):
        try:
            begun = datetime.strptime(part[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            continue
        return time.time() - begun.timestamp()
    return float("inf")


@command("hold", short_help="Let no file be deleted for a while.")
@click.option("--for", "seconds", callback=parse_duration, default="1h", show_default=True,
              metavar="DURATION", help="For so long, at most 30d.")
def hold(session: Session, seconds: int) -> None:
    """Keep every file of the node's data directory from deletion, for a copy by other means.

    The same command again changes how long. `meterctl wal status` shows what holds files.
    """
    with session.connect() as client:
        held = ask(client, "backup_hold", seconds=seconds)["hold"]
    session.console.show(held, lambda: [f"held until {format_moment(held['expires'])}"])


@command("release", short_help="End a hold before its time.")
def release(session: Session) -> None:
    """End what `backup hold` began. Exit code 5 when nothing was held."""
    with session.connect() as client:
        answer = ask(client, "backup_release")
    session.console.show(answer, lambda: ["released" if answer["released"] else "nothing was held"])
    if not answer["released"]:
        sys.exit(AdminExit.NOT_FOUND)


for _command in (create, list_backups, verify, prune, hold, release):
    backup.add_command(_command)

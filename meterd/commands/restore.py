"""`meterctl restore`: a backup becomes a data directory again, while no node runs on it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from meterd.commands.backup import (
    configured_directory,
    from_option,
    name_option,
    node_option,
    open_shelf,
)
from meterd.commands.console import Progress, field_lines, warn
from meterd.commands.moments import format_moment
from meterd.commands.session import AdminError, AdminGroup, Session, command
from meterd.commands.tables import format_bytes, group_thousands
from meterd.exits import AdminExit

if TYPE_CHECKING:
    from meterd.actors.backups.restoring import Plan


@click.group("restore", cls=AdminGroup)
def restore() -> None:
    """Bring a backup back as a data directory. The node must not run."""


def _directory(_ctx: click.Context, _param: click.Parameter, given: str | None) -> str:
    return given or configured_directory()


def restore_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both commands."""
    options = (
        from_option,
        name_option,
        node_option,
        click.option("--data-dir", metavar="DIR", callback=_directory,
                     help="The data directory to restore; what is there is moved aside "
                          "[default: the one of this machine's configuration]."),
        click.option("--plan", "plan_only", is_flag=True, help="Only say what would be done."),
        click.option("--level", type=click.Choice(["checksum", "replay"]), default="replay",
                     show_default=True, help="How the restored directory is verified."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command("node", short_help="Restore one node.")
@restore_options
def node(session: Session, **how: Any) -> None:
    """Restore the data directory of a node from a backup of it, the newest unless one is named.

    Where backups of several nodes lie, of the node that the directory belongs to, or of --node.

    The plan comes first; without --yes it asks. The backup is fetched into a new directory and
    verified there; only then the old one is moved aside. Nothing is deleted.

    Exit code 6: another node's directory, or nobody to ask; 9: the backup is damaged; 10: the node
    runs; 11: too little room.
    """
    _restore(session, "node", **how)


@command("cluster", short_help="Restore a whole cluster.")
@restore_options
def cluster(session: Session, **how: Any) -> None:
    """Restore the cluster of a single node: the same as restore node."""
    _restore(session, "cluster", **how)


for _command in (node, cluster):
    restore.add_command(_command)


def _restore(session: Session, scope: Any, *, source: str, name: str | None, node: int | None,
             data_dir: str, plan_only: bool, level: Any) -> None:
    from meterd.actors.backups import restoring

    shelf, contents = open_shelf(source)
    manifest = restoring.choose(contents, name, node, data_dir)
    todo = restoring.plan(shelf, manifest, data_dir, scope)
    document = {"plan": todo.to_map(), "done": False}
    if plan_only:
        session.console.show(document, lambda: plan_lines(todo))
        return
    if not session.yes:
        for line in plan_lines(todo):
            warn(line)
        session.confirm(f"Restore {todo.manifest.name} to {todo.data_dir}?")
    progress = Progress()
    findings = restoring.carry_out(shelf, todo, level, progress.update)
    progress.clear()
    if findings:
        for one in findings:
            warn(f"{one.file}: {one.problem}")
        raise AdminError(AdminExit.CORRUPT, "corrupt",
                         f"{todo.manifest.name} is damaged; nothing was changed",
                         "restore another backup")
    document["done"] = True
    session.console.show(document, lambda: _done_lines(todo))


def plan_lines(todo: "Plan") -> list[str]:
    """A plan for people."""
    one = todo.manifest
    return field_lines([
        ("backup", f"{one.name} ({one.type}) of node {one.node_id}"),
        ("cut", f"{format_moment(one.cut.taken)}, record {one.cut.sequence}"),
        ("holds", f"{group_thousands(one.events)} events, {format_bytes(one.size)} in"
                  f" {len(one.files)} files; {format_bytes(todo.free)} are free"),
        ("to", todo.data_dir),
        ("there now", todo.old),
        ("moved aside to", todo.aside or ""),
    ])


def _done_lines(todo: "Plan") -> list[str]:
    lines = [f"restored {todo.manifest.name} to {todo.data_dir}"]
    if todo.aside:
        lines.append(f"what was there is in {todo.aside}")
    lines.append("nothing expires until retention.grace_after_restore is over")
    return lines

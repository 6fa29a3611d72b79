"""`meterctl config validate` and `config show`: what a node on this machine would start with.

Nobody is asked: file, variables and defaults are read by the code that a start reads them with.
"""

import os
from collections.abc import Iterator
from typing import Any

import click

from meterd.commands.console import Listing, Row, warn
from meterd.commands.session import AdminGroup, Session, command
from meterd.commands.tables import Column

LATER = {"reload": "send the node SIGHUP (systemctl reload meterd)"}


@click.group("config", cls=AdminGroup, later=LATER)
def config() -> None:
    """Check and show the configuration that a node on this machine would start with."""


_file_option = click.option(
    "--file", "path", metavar="FILE", help="The TOML file [env: METERD_CONFIG; default: none]."
)

_SETTINGS = Listing(
    "settings",
    [
        Column("KEY"),
        Column("VALUE", elastic=True),
        Column("DEFAULT", elastic=True),
        Column("RELOADS"),
    ],
    lambda row: (row["key"], row["value"], row["default"], "yes" if row["reloads"] else ""),
)


@command("validate", short_help="Say what is wrong with a configuration.")
@_file_option
def validate(session: Session, path: str | None) -> None:
    """Check FILE and the METERD__ variables as a start does. Exit code 78: something is wrong."""
    _, warnings = _read(path)
    for warning in warnings:
        warn(f"warning: {warning}")
    document = {"valid": True, "warnings": warnings}
    session.console.show(document, lambda: ["the configuration is good"])


@command("show", short_help="Show every key with its value.")
@_file_option
def show(session: Session, path: str | None) -> None:
    """Show every key with the value that FILE and the METERD__ variables give it."""
    options, _ = _read(path)
    session.console.show_listing(_SETTINGS, _rows(options))


for _command in (validate, show):
    config.add_command(_command)


def _read(path: str | None) -> tuple[Any, list[str]]:
    """Return the options, and what may be meant and is rarely wise.  Raises ConfigError."""
    from meterd import config as sources
    from meterd.actors.starting import peer_list

    options = sources.load({}, os.environ, path)
    node = options.node
    return options, peer_list.warnings(node.id, node.port, node.peers)


def _rows(options: Any) -> Iterator[Row]:
    from meterd.actors.options import all_keys, format_value

    for section, field in all_keys():
        kind = field.metadata["kind"]
        yield {
            "key": f"{section}.{field.name}",
            "value": format_value(kind, getattr(getattr(options, section), field.name)),
            "default": format_value(kind, field.default),  # type: ignore[arg-type]
            "reloads": bool(field.metadata.get("reloadable")),
        }

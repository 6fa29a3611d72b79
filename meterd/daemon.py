"""The command `meterd`: reads the configuration and runs a node until it is told to stop.

Heavy modules are imported only by the command that serves, so `--version`, `--help` and
`check-config` answer at once, and nothing is loaded before the environment is right for it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from meterd import __version__, config
from meterd.actors.options import Options, all_keys, format_value
from meterd.actors.starting import peer_list
from meterd.exits import DaemonExit
from meterd.protocol.errors import ConfigError

# A thread that a library starts at import would be lost in every fork, and is not needed: the
# node's parallelism is its processes.
SINGLE_THREADED = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

FLAG_HELP = {
    "--node-id": ("N", "Number of this node in its cluster."),
    "--data-dir": ("DIR", "Directory of everything the node keeps."),
    "--listen": ("ADDR", "Address to listen on; 0.0.0.0 or :: for every interface."),
    "--advertise": ("HOST", "Name or address that clients are told."),
    "--port": ("PORT", "Application port."),
    "--http-port": ("PORT", "Port of /health and /metrics."),
    "--peers": ("ID:HOST:PORT,...", "Nodes of the cluster; the own entry is ignored."),
    "--bootstrap": ("auto|new|join|recover", "Make a cluster, join one, or recover."),
    "--retention-days": ("DAYS", "Keep events for so many days."),
    "--log-level": ("debug|info|warning|error", "Least important messages to write."),
    "--log-format": ("text|json", "For people or for machines."),
}


def flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of the daemon."""
    for flag, (metavar, help) in reversed(FLAG_HELP.items()):
        command = click.option(flag, _parameter(flag), metavar=metavar, help=help)(command)
    return click.option("--config", "path", metavar="FILE", help="TOML file.")(command)


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _load(path: str | None, values: dict[str, str | None]) -> Options:
    given = {flag: values[_parameter(flag)] for flag in FLAG_HELP}
    return config.load({f: v for f, v in given.items() if v is not None}, os.environ, path)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="meterd %(version)s")
@flags
@click.pass_context
def command(context: click.Context, /, path: str | None, **values: str | None) -> int | None:
    """Run a node of meterd, the system of record for how much each customer used.

    Without any flag a single node keeps its data in ./data and listens on 127.0.0.1:7001.
    """
    context.obj = (path, values)
    if context.invoked_subcommand is not None:
        return None
    return serve(lambda: _load(path, values))


@command.command("check-config")
@flags
@click.pass_obj
def check_config(
    above: tuple[str | None, dict[str, str | None]], /, path: str | None, **values: str | None
) -> int:
    """Read the whole configuration, say what is wrong with it, or print it."""
    merged = {key: values[key] if values[key] is not None else above[1][key] for key in values}
    options = _load(path or above[0], merged)
    for section, field in all_keys():
        value = getattr(getattr(options, section), field.name)
        click.echo(f"{section}.{field.name} = {format_value(field.metadata['kind'], value)}")
    node = options.node
    for warning in peer_list.warnings(node.id, node.port, node.peers):
        click.echo(f"meterd: warning: {warning}", err=True)
    return DaemonExit.CLEAN


def serve(load: Callable[[], Options]) -> int:
    """Run the node."""
    if not __debug__:
        raise click.UsageError("python -O drops the checks that guard the data")
    options = load()
    for name in SINGLE_THREADED:
        os.environ.setdefault(name, "1")
    gc.disable()  # modules stay: looking for garbage among them would only take time
    from meterd.actors import node

    gc.freeze()
    gc.enable()
    return node.run(options, load)


def main(prog_name: str = "meterd") -> None:
    """Run the command and end with the daemon's exit code."""
    try:
        code = command.main(prog_name=prog_name, standalone_mode=False)
    except click.UsageError as error:
        error.show()
        code = DaemonExit.USAGE
    except ConfigError as error:
        click.echo(f"meterd: {error}", err=True)
        code = DaemonExit.CONFIGURATION
    sys.exit(code)

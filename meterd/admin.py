"""meterctl: the administrator's tool. Collects the commands and turns every ending into a code.

Each module in `meterd/commands` holds one group of commands, each with its function, its form for
people and its help in one place. Errors go to standard error as one line with a stable code, and a
hint; the exit codes are those of `meterd/exits.py`.
"""

import errno
import os
import sys
import traceback
from typing import NoReturn

import click

import meterd
from meterd.commands import (
    account,
    backup,
    bench,
    changes,
    compact,
    completion,
    configuration,
    difference,
    disk,
    drill,
    events,
    fsck,
    ingest,
    jobs,
    metric,
    nodes,
    rebalance,
    restore,
    storage,
    topology,
    usage,
)
from meterd.commands.console import forget, warn, while_read
from meterd.commands.session import AdminError, AdminGroup, admin_error_of
from meterd.exits import AdminExit
from meterd.protocol.errors import MeterdError

COMMANDS: tuple[click.Command, ...] = (
    metric.metric,
    ingest.ingest,
    usage.usage,
    usage.accounts,
    events.events,
    events.feed,
    account.account,
    nodes.status,
    nodes.health,
    nodes.metrics,
    nodes.wait,
    topology.topology,
    topology.consensus,
    topology.replication,
    difference.diff,
    changes.leader,
    changes.node,
    changes.drain,
    changes.undrain,
    rebalance.rebalance,
    storage.checkpoint,
    storage.retention,
    storage.wal,
    compact.compact,
    jobs.jobs,
    disk.disk,
    backup.backup,
    restore.restore,
    drill.drill,
    fsck.fsck,
    bench.bench,
    configuration.config,
    nodes.version,
    completion.completion,
)

LATER = {
    "void": "store an event with the negative value",
    "quota": "",
    "alerts": "",
    "manifest": "meterctl wal status and meterctl compact status show what a node has",
    "rolling-restart": "restart one node after the other, meterctl wait --for caught-up in between",
    "key": "docs/SECURITY.md says how a node is protected",
    "limits": "",
    "log": "set log.level and send the node SIGHUP (systemctl reload meterd)",
    "capacity": "meterctl disk status shows growth and when the disk will be full",
    "bundle": "",
}


class Meterctl(AdminGroup):
    """The top group: lists its commands in the order above, the way they are met."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> None:
        with while_read(sys.stdout):  # before click sees it, which would end with 1
            super().invoke(ctx)


cli = Meterctl(
    "meterctl",
    help=(
        "Administer meterd: register metrics, send events, ask what was used.\n\n"
        "Results go to standard output, as a table on a terminal and as JSON otherwise; errors go "
        "to standard error. The global options may stand before or after the command."
    ),
    commands={command.name: command for command in COMMANDS if command.name},
    later=LATER,
    context_settings={"help_option_names": ["-h", "--help"]},
)
click.version_option(meterd.__version__, message="meterctl %(version)s")(cli)


def main(prog_name: str = "meterctl", args: list[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code."""
    # Whoever starts it may have closed them; then they are None.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    sys.exit(run(prog_name, args))


def run(prog_name: str = "meterctl", args: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    return _flushed(_run(prog_name, args))


def _run(prog_name: str, args: list[str] | None) -> int:
    """Everything that can end a command is named here."""
    try:
        ending = cli.main(args=args, prog_name=prog_name, standalone_mode=False)
        return ending or AdminExit.GOOD
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else AdminExit.GOOD
    except click.ClickException as error:
        with while_read(sys.stderr):
            error.show()
        return AdminExit.USAGE
    except AdminError as error:
        return _report(error)
    except MeterdError as error:
        return _report(admin_error_of(error))
    except (KeyboardInterrupt, click.Abort):
        return AdminExit.INTERRUPTED
    except OSError as error:
        return _on_os_error(error)
    except Exception as error:
        traceback.print_exc()
        return _report(AdminError(AdminExit.INTERNAL, "internal", f"a bug: {error!r}"))


def _report(error: AdminError) -> int:
    warn(f"{error.code}: {error.message}")
    if error.hint and error.hint != error.message:
        warn(f"hint: {error.hint}")
    return error.exit_code


# What the operating system says no to, and how that ends the program; anything else is a bug.
_OS_ERRORS = {
    errno.ENOSPC: (AdminExit.NO_SPACE, "disk_full"),
    errno.EDQUOT: (AdminExit.NO_SPACE, "disk_full"),
    errno.ENOENT: (AdminExit.NOT_FOUND, "not_found"),
    errno.ENOTDIR: (AdminExit.NOT_FOUND, "not_found"),
    errno.EACCES: (AdminExit.NOT_ALLOWED, "not_allowed"),
    errno.EPERM: (AdminExit.NOT_ALLOWED, "not_allowed"),
    errno.EROFS: (AdminExit.NOT_ALLOWED, "not_allowed"),
}


def _on_os_error(error: OSError) -> int:
    """Say which file of this machine could not be used, be it standard output."""
    try:
        sys.stdout.flush()
    except OSError:
        forget(sys.stdout)
    if error.errno not in _OS_ERRORS:
        traceback.print_exception(error)
        return _report(AdminError(AdminExit.INTERNAL, "internal", f"a bug: {error!r}"))
    exit_code, code = _OS_ERRORS[error.errno]
    return _report(AdminError(exit_code, code, f"{error.filename or 'output'}: {error.strerror}"))


def _flushed(exit_code: int) -> int:
    try:
        with while_read(sys.stdout):
            return exit_code
    except OSError as error:
        return _on_os_error(error)

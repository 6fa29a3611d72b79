"""What every meterctl command shares: the global options, the connection, and how errors end.

The global options may stand before or after the command's name; the later one wins. A command is
a click command of class `AdminCommand` and takes the `Session` as its first argument.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from meterd.commands.console import OUTPUTS, Console
from meterd.exits import AdminExit, worst
from meterd.protocol.errors import BadRequest, MeterdError

if TYPE_CHECKING:
    from meterd.client import Client

NODES_VARIABLE = "METERCTL_NODES"
NODES_DEFAULT = "127.0.0.1:7001"
TIMEOUT_DEFAULT = 5.0
TIMEOUT_MAX = 3600.0
LOOK_SECONDS = 2.0

_EXIT_OF_CODE = {
    "unreachable": AdminExit.UNREACHABLE,
    "deadline_exceeded": AdminExit.UNREACHABLE,
    "bad_request": AdminExit.USAGE,
    "too_large": AdminExit.USAGE,
    "unsupported_aggregation": AdminExit.USAGE,
    "unsupported_thresholds": AdminExit.USAGE,
    "unknown_metric": AdminExit.NOT_FOUND,
    "not_found": AdminExit.NOT_FOUND,
    "range_expired": AdminExit.NOT_FOUND,
    "metric_versions_differ": AdminExit.USAGE,
    "metric_conflict": AdminExit.REFUSED,
    "import_conflict": AdminExit.REFUSED,
    "too_many_balances": AdminExit.REFUSED,
    "too_many_erasures": AdminExit.REFUSED,
    "not_needed": AdminExit.REFUSED,
    "too_many_metrics": AdminExit.REFUSED,
    "overloaded": AdminExit.BUSY,
    "busy": AdminExit.BUSY,
    "starting": AdminExit.BUSY,
    "restarting": AdminExit.BUSY,
    "shutting_down": AdminExit.BUSY,
    "not_leader": AdminExit.BUSY,
    "exists": AdminExit.REFUSED,
    "change_refused": AdminExit.REFUSED,
    "store_failed": AdminExit.UNREACHABLE,
    "memory_full": AdminExit.NO_SPACE,
    "disk_stop": AdminExit.NO_SPACE,
    "disk_full": AdminExit.NO_SPACE,
    "refused": AdminExit.REFUSED,
    "in_use": AdminExit.BUSY,
    "boot_failed": AdminExit.CORRUPT,
    "corrupt": AdminExit.CORRUPT,
    "config": AdminExit.CONFIGURATION,
}
# Hints that name what helps in this program; the others are the protocol's.
_HINT_OF_CODE = {
    "metric_conflict": "--replace makes a new version, for events from now on",
    "unreachable": "is the node running? Name it with -n HOST:PORT",
    "disk_stop": "free disk space; meterctl disk status says what uses it",
    "deadline_exceeded": "a change may still happen; --timeout SECONDS waits longer",
    "restarting": "a part of the node was restarted; try again",
}


@dataclass(frozen=True)
class Session:
    """The global options of one run."""

    nodes: tuple[str, ...] = (NODES_DEFAULT,)
    timeout: float = TIMEOUT_DEFAULT
    timeout_given: bool = False
    output: str | None = None
    yes: bool = False

    @property
    def console(self) -> Console:
        return Console(self.output)

    def connect(self, timeout: float | None = None) -> "Client":
        """A client of these nodes. Imported here: help and completion need no network library."""
        from meterd.client import Client

        return Client(list(self.nodes), timeout=timeout or self.timeout)

    def each_node(self) -> "list[Session]":
        """The same session for each of its nodes alone."""
        return [replace(self, nodes=(node,)) for node in self.nodes]

    def patience(self, default: float) -> float:
        """The timeout of a command that waits longer than others unless told otherwise."""
        return self.timeout if self.timeout_given else default

    def looking(self) -> "Session":
        """The same for one look of a command that waits: who is dead must not take all its time."""
        return replace(self, timeout=min(self.timeout, LOOK_SECONDS))

    def confirm(self, question: str) -> None:
        """Ask before something that cannot be undone, unless `--yes` was given."""
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise AdminError(AdminExit.REFUSED, "refused", question, "pass --yes to do it")
        click.confirm(question, abort=True, err=True)


class AdminError(Exception):
    """Ends the program: exit code, stable error code, message and hint."""

    def __init__(self, exit_code: AdminExit, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.message = message
        self.hint = hint


def exit_of(code: str) -> AdminExit:
    """The exit code of an error's code."""
    return _EXIT_OF_CODE.get(code, AdminExit.INTERNAL)


def admin_error_of(error: MeterdError) -> AdminError:
    """How an error of the client ends the program."""
    # A request that was declined until time was over ends as its last answer says.
    declined = error
    while declined.code == "deadline_exceeded" and isinstance(declined.__cause__, MeterdError):
        declined = declined.__cause__
    exit_code = exit_of(declined.code)
    hint = _HINT_OF_CODE.get(error.code, error.hint)
    return AdminError(exit_code, error.code, error.message, hint)


def exit_with(codes: Iterable[AdminExit]) -> None:
    """End the program with the worst of these exit codes; go on when all are good."""
    code = worst(codes)
    if code is not AdminExit.GOOD:
        raise SystemExit(code)


def _parse_nodes(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    from meterd.protocol.fields import address

    nodes = tuple(node.strip() for node in text.split(",") if node.strip())
    for node in nodes:
        try:
            address(node, "nodes")
        except BadRequest:
            raise click.BadParameter(f"{node!r} is not HOST:PORT") from None
    if not nodes:
        raise click.BadParameter("names no node")
    return nodes


def _parse_timeout(_ctx: click.Context, _param: click.Parameter, seconds: float | None) -> Any:
    if seconds is not None and math.isnan(seconds):  # is in every range
        raise click.BadParameter("nan is no number of seconds")
    return seconds


def global_options() -> list[click.Option]:
    """Fresh copies of the options that every command takes."""
    return [
        click.Option(
            ["-n", "--nodes"],
            callback=_parse_nodes,
            metavar="HOST:PORT,...",
            help=f"Nodes to ask [env: {NODES_VARIABLE}; default: {NODES_DEFAULT}].",
        ),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(0.001, TIMEOUT_MAX),
            callback=_parse_timeout,
            metavar="SECONDS",
            help="How long to wait for an answer [default: 5; ingest: 30].",
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(OUTPUTS),
            help="Form of the result [default: table on a terminal, else json].",
        ),
        click.Option(
            ["--yes"], is_flag=True, default=None, help="Do not ask before destructive commands."
        ),
    ]


def session_from_environment() -> Session:
    """The session before any option was read."""
    text = os.environ.get(NODES_VARIABLE)
    if not text:
        return Session()
    try:
        return Session(nodes=_parse_nodes(click.Context(click.Command("")), None, text))  # type: ignore[arg-type]
    except click.BadParameter as error:
        raise click.UsageError(f"{NODES_VARIABLE}: {error.message}") from None


def take_global_options(ctx: click.Context) -> None:
    """Move the global options given at this place from the parameters into the session."""
    session = ctx.obj or session_from_environment()
    given = {name: ctx.params.pop(name) for name in ("nodes", "timeout", "output", "yes")}
    given = {name: value for name, value in given.items() if value is not None}
    if "timeout" in given:
        given["timeout_given"] = True
    ctx.obj = replace(session, **given)


class AdminCommand(click.Command):
    """A command that also takes the global options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())

    def invoke(self, ctx: click.Context) -> Any:
        take_global_options(ctx)
        return super().invoke(ctx)


class AdminGroup(click.Group):
    """A group of such commands; `default` names the one that is meant when none is named.

    `later` are names that this version does not have, each with what to do instead: whoever has
    read of one is told that it is missing and not that it is misspelt.
    """

    command_class = AdminCommand

    def __init__(
        self,
        *args: Any,
        default: str | None = None,
        later: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())
        self.default = default
        self.later = later or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        helps = args and args[0] in ctx.help_option_names
        first = self._behind_options(args)
        if self.default and not helps and first not in self.commands and first not in self.later:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def _behind_options(self, args: list[str]) -> str:
        """What follows the group's own options: a command's name, or what is the default's."""
        options = [option for option in self.params if isinstance(option, click.Option)]
        valued = {name for option in options for name in option.opts if not option.is_flag}
        flags = {name for option in options for name in option.opts if option.is_flag}
        rest = iter(args)
        for arg in rest:
            if arg in valued:
                next(rest, None)
            elif arg not in flags and not arg.startswith(_with_values(valued)):
                return arg
        return ""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] in self.later:
            instead = self.later[args[0]]
            text = f"{ctx.command_path} {args[0]} is not in this version"
            raise click.UsageError(f"{text}: {instead}" if instead else text)
        if self.default and args[0] not in self.commands:
            args = [self.default, *args]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        take_global_options(ctx)
        return super().invoke(ctx)


def _with_values(names: Iterable[str]) -> tuple[str, ...]:
    """How options begin that hold their values themselves: `--timeout=5`, `-ojson`."""
    return tuple(f"{name}=" if name.startswith("--") else name for name in names)


def command(name: str, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function, which takes the session first, a command of that name."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        return click.command(name, cls=AdminCommand, **kwargs)(click.pass_obj(function))

    return decorate

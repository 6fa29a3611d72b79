"""`meterctl completion`: the script that lets a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

from meterd.commands.session import AdminError, Session, command
from meterd.exits import AdminExit

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_METERCTL_COMPLETE"


@command("completion", short_help="Print a completion script for a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, session: Session, shell: str) -> None:
    """Print the script that makes SHELL complete meterctl.

    \b
    bash:  meterctl completion bash > /etc/bash_completion.d/meterctl
    zsh:   meterctl completion zsh > "${fpath[1]}/_meterctl"
    fish:  meterctl completion fish > ~/.config/fish/completions/meterctl.fish
    """
    maker = get_completion_class(shell)
    if maker is None:
        raise AdminError(AdminExit.NOT_FOUND, "not_found", f"no completion for {shell}")
    root = ctx.find_root()
    source = maker(root.command, {}, "meterctl", VARIABLE).source_vars()
    session.console.write_line((maker.source_template % source).strip())

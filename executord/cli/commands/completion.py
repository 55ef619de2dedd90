"""`executorctl completion`: what a shell needs to complete commands, options and run ids."""

import click
from click.shell_completion import get_completion_class

from executord.cli.errors import CliError
from executord.cli.session import Command

_VARIABLE = "_EXECUTORCTL_COMPLETE"


_HELP = """Print a completion script for a shell.

\b
bash:  executorctl completion bash > ~/.local/share/bash-completion/completions/executorctl
zsh:   executorctl completion zsh > "${fpath[1]}/_executorctl"
fish:  executorctl completion fish > ~/.config/fish/completions/executorctl.fish
"""


@click.command("completion", cls=Command, help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, *, shell: str) -> None:
    """Completes commands, options and the ids of this node's runs."""
    kind = get_completion_class(shell)
    if kind is None:
        raise CliError(f"There is no completion for {shell}.")
    script = kind(context.find_root().command, {}, "executorctl", _VARIABLE)
    click.echo(script.source_template % script.source_vars())

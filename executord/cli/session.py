"""What every command shares: where the daemon is, how to print, and the options that say so."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from executord.cli.output import Output

if TYPE_CHECKING:
    from executord.cli.client import Client

DEFAULT_SOCKET = "/run/executord/executord.sock"
_COMPLETION_DEADLINE_SECONDS = 1.0
_COMPLETION_RUNS = 50


@dataclass
class Session:
    """The options given before the command or with it, and the parts that follow from them."""

    socket: str = DEFAULT_SOCKET
    as_json: bool = False
    quiet: bool = False

    @cached_property
    def client(self) -> "Client":
        from executord.cli.client import Client  # noqa: PLC0415 - not for --help

        return Client(self.socket)

    @cached_property
    def output(self) -> Output:
        return Output(as_json=self.as_json, quiet=self.quiet)


pass_session = click.make_pass_decorator(Session, ensure=True)


def common_options(*, hidden_socket: bool = True) -> list[click.Parameter]:
    """`--json`, `--quiet` and `--socket`: accepted before the command and after it."""
    return [
        click.Option(
            ["--socket"],
            metavar="PATH",
            envvar="EXECUTORD_SOCKET",
            expose_value=False,
            callback=_keep("socket"),
            hidden=hidden_socket,
            help=f"The daemon's socket (EXECUTORD_SOCKET; {DEFAULT_SOCKET}).",
        ),
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            expose_value=False,
            callback=_keep("as_json"),
            help="Print JSON for machines.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_keep("quiet"),
            help="Print results and errors only.",
        ),
    ]


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        session = context.ensure_object(Session)
        assert parameter.name is not None
        source = context.get_parameter_source(parameter.name)
        on_a_command = context.parent is not None
        if value and not (on_a_command and source is click.core.ParameterSource.ENVIRONMENT):
            setattr(session, name, value)
        return value

    return keep


class Command(click.Command):
    """A command that also takes the common options."""

    def __init__(
        self, name: str | None, params: Sequence[click.Parameter] | None = None, **rest: Any
    ) -> None:
        super().__init__(name, params=[*(params or ()), *common_options()], **rest)


class Group(click.Group):
    """A command with commands of its own, all of which take the common options."""

    command_class = Command

    def __init__(
        self, name: str | None = None, params: Sequence[click.Parameter] | None = None, **rest: Any
    ) -> None:
        super().__init__(name, params=[*(params or ()), *common_options()], **rest)


def complete_run_id(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Ids of this node's runs for the shell; none at all where the daemon does not answer."""
    from executord.cli.client import Client  # noqa: PLC0415 - only when completing
    from executord.cli.errors import CliError  # noqa: PLC0415 - only when completing

    socket = context.find_root().params.get("socket") or os.environ.get("EXECUTORD_SOCKET")
    client = Client(socket or DEFAULT_SOCKET, deadline_seconds=_COMPLETION_DEADLINE_SECONDS)
    try:
        runs = client.get("/v1/runs", limit=_COMPLETION_RUNS).get("runs", [])
    except CliError:
        return []
    return [
        CompletionItem(run["id"], help=f"{run.get('state', '')} {run.get('project', '')}".strip())
        for run in runs
        if str(run.get("id", "")).startswith(incomplete)
    ]


run_argument = click.argument("run_id", metavar="RUN", shell_complete=complete_run_id)
runs_argument = click.argument(
    "run_ids", metavar="RUN…", nargs=-1, required=True, shell_complete=complete_run_id
)

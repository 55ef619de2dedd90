"""`executorctl`: the entry point. A command's module is imported when that command is used."""

import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from executord.cli.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PIPE_CLOSED,
    EXIT_USAGE,
    CliError,
)
from executord.cli.output import Output
from executord.cli.session import Session, common_options

COMMANDS = {
    "run": ("run", "Push files, submit a run and follow it to its end."),
    "submit": ("submit", "Submit an assignment from a JSON file."),
    "ps": ("ps", "List runs."),
    "show": ("show", "Show one run: what happened when, why it ended, what it used."),
    "wait": ("wait", "Wait until runs have ended."),
    "logs": ("logs", "Print a run's console output."),
    "stop": ("stop", "Ask runs to stop."),
    "stats": ("stats", "Show what runs and the host use now."),
    "files": ("files", "List the files a run has changed."),
    "sync": ("sync", "Store a run's changed files now."),
    "push": ("store", "Store a directory as a new revision of a project."),
    "pull": ("store", "Write a revision's files into a directory."),
    "diff": ("store", "List what differs between two revisions."),
    "cache": ("cache", "Show, prune, verify, prefetch or simulate the file cache."),
    "images": ("cache", "List the images the node keeps."),
    "events": ("events", "Print state transitions of all runs."),
    "node": ("node", "Show the node: tiers, room, engine, store."),
    "drain": ("node", "Stop taking new runs."),
    "resume": ("node", "Take new runs again."),
    "doctor": ("doctor", "Check the node and say how to mend what is wrong."),
    "completion": ("completion", "Print a completion script for a shell."),
}


_HELP = """Run other people's code on this node, and see what became of it.

\b
Exit codes: 0 fine, 1 the run or the request failed, 2 wrong usage,
3 the daemon is not reachable; `run` passes on the exit code of the command.
"""


class LazyGroup(click.Group):
    """Knows its commands by name and sentence, and imports one only to run it."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"executord.cli.commands.{COMMANDS[cmd_name][0]}")
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _forget_stdout()
            return EXIT_PIPE_CLOSED

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=sentence)
            for name, (_, sentence) in COMMANDS.items()
            if name.startswith(incomplete)
        ]


@click.group(
    cls=LazyGroup,
    help=_HELP,
    params=common_options(hidden_socket=False),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="executord", prog_name="executorctl")
def cli() -> None:
    """`executorctl` without a command prints its help."""


def main() -> NoReturn:
    """Run one command and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    session = Session()
    try:
        code = cli.main(prog_name="executorctl", standalone_mode=False, obj=session)
        code = _flushed(code)
    except Exception as error:  # noqa: BLE001 - the one place where an error meets the person
        sys.exit(_report(session, error))
    sys.exit(code if isinstance(code, int) else 0)


def _report(session: Session, error: Exception) -> int:
    """Say what went wrong; gives the exit code."""
    if isinstance(error, click.Abort):
        return EXIT_INTERRUPTED
    if isinstance(error, click.UsageError):
        error.show()
        return EXIT_USAGE
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if not isinstance(error, CliError):
        return _report_mistake(session, error)
    _tell(session, error.as_json(), error.message, error.advice)
    return error.exit_code


def _report_mistake(session: Session, error: Exception) -> int:
    if os.environ.get("EXECUTORD_DEBUG"):
        raise error
    _tell(
        session,
        {"code": "internal", "detail": f"{type(error).__name__}: {error}"},
        f"This is a mistake in executorctl itself: {type(error).__name__}: {error}",
        "Please report it; with EXECUTORD_DEBUG=1 it tells where it happened.",
    )
    return EXIT_FAILED


def _tell(session: Session, document: dict[str, Any], message: str, advice: str) -> None:
    if session.as_json:
        import json  # noqa: PLC0415 - only for machines

        print(json.dumps({"error": document}), file=sys.stderr)
    else:
        Output().error(message, advice)


def _flushed(code: Any) -> Any:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_PIPE_CLOSED
    return code


def _forget_stdout() -> None:
    """Nobody reads stdout any more: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

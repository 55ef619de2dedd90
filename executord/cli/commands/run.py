"""`executorctl run`: push, submit, follow, and exit as the command did."""

import sys
from pathlib import Path
from typing import Any

import click

from executord.cli import store as file_store
from executord.cli.assignment import assignment, is_revision, new_run_id, this_user
from executord.cli.client import JsonObject, quoted
from executord.cli.describe import process_exit_code
from executord.cli.errors import EXIT_INTERRUPTED, CliError, ConnectionLostError, UsageProblemError
from executord.cli.live import Follower
from executord.cli.session import Command, Session, pass_session
from executord.cli.store import store_option
from executord.cli.views import make_view


@click.command(
    "run",
    cls=Command,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)
@click.argument("command", metavar="-- CMD…", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-p", "--project", metavar="OWNER/NAME", help="The project the run belongs to.")
@click.option("--files", metavar="DIR|REV", help="Push DIR and start with it, or start with REV.")
@store_option
@click.option("-t", "--tier", help="Hardware tier; `executorctl node` lists them.")
@click.option("-i", "--image", help="The image to execute in, or to build on.")
@click.option("--dockerfile", metavar="FILE", help="Lines to build on top of the image.")
@click.option("--build-arg", "build_args", metavar="K=V", help="For the Dockerfile.", multiple=True)
@click.option(
    "--pull", type=click.Choice(["missing", "always", "never"]), help="When to fetch the image."
)
@click.option(
    "-e", "--env", metavar="K=V", help="A variable; K alone takes it from here.", multiple=True
)
@click.option(
    "--env-file", "env_files", metavar="FILE", help="Variables, one a line.", multiple=True
)
@click.option("--secret", metavar="K=V", help="A secret; better from a file.", multiple=True)
@click.option(
    "--secret-file", "secret_files", metavar="K=FILE", help="A secret's file.", multiple=True
)
@click.option(
    "--mount",
    metavar="SRC:DST[:rw]|REV:DST",
    help="A folder of the node, or a revision's files.",
    multiple=True,
)
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS")
@click.option("--keep", metavar="ENDS", help="succeeded,failed,stopped or none: keep changes.")
@click.option("-l", "--label", "labels", metavar="K=V", help="A label.", multiple=True)
@click.option("--id", "run_id", metavar="ID", help="The run's id; submitting it twice is safe.")
@click.option("--number", type=click.IntRange(min=0), help="The run's number in its project.")
@click.option("--started-by", metavar="NAME", help="Who started it; you, if not given.")
@click.option("-d", "--detach", is_flag=True, help="Print the run's id and leave it to itself.")
@click.option("--raw", is_flag=True, help="Let control sequences of the code reach the terminal.")
@pass_session
def run_command(
    session: Session,
    /,
    *,
    files: str | None,
    store: str | None,
    detach: bool,
    raw: bool,
    **given: Any,
) -> int:
    """Push files, submit a run and follow it to its end.

    Exits with the exit code of CMD. A run that did not succeed never exits with 0: where CMD left
    no exit code of its own, it is 1.

    Ctrl-C asks the run to stop; a second one detaches and leaves it to itself.
    """
    given["run_id"] = given["run_id"] or new_run_id()
    given["started_by"] = given["started_by"] or this_user()
    body = assignment(**given)
    if files:
        body["files"] = {"revision": _revision(session, files, store, body)}
    run = _submitted(session, body)
    if detach:
        _print_submitted(session, run)
        return 0
    return _follow(session, str(run["id"]), raw=raw)


def _revision(session: Session, files: str, store: str | None, body: JsonObject) -> str:
    """The digest that `--files` stands for; a directory is pushed to the run's project."""
    if is_revision(files):
        return files
    directory = Path(files)
    if not directory.is_dir():
        raise UsageProblemError(f"--files: {files} is neither a directory nor a revision's digest.")
    body.setdefault("project", file_store.project_of(directory, body["started_by"]))
    pushed = file_store.push(
        session, directory, project=body["project"], author=body["started_by"], store=store
    )
    return pushed.revision


def _submitted(session: Session, body: JsonObject) -> JsonObject:
    """Submits, and once more where the answer was lost: the id makes that safe."""
    try:
        return session.client.post("/v1/runs", body)
    except ConnectionLostError:
        return session.client.post("/v1/runs", body)


def _print_submitted(session: Session, run: JsonObject) -> None:
    if session.as_json:
        session.output.json(run)
        return
    session.output.line(str(run["id"]))
    session.output.note(f"Follow it with `executorctl logs -f {run['id']}`.")


def _changes(session: Session, run: JsonObject) -> list[JsonObject]:
    """What the run has changed, where that is still known: said beside its end, never instead."""
    result = run.get("result") or {}
    if session.quiet or not any(result.get(kind) for kind in ("added", "changed", "deleted")):
        return []
    try:
        return session.client.get(f"/v1/runs/{quoted(str(run['id']))}/files").get("changes") or []
    except CliError:
        return []


def _follow(session: Session, run_id: str, *, raw: bool) -> int:
    view = make_view(raw=raw, quiet=session.quiet, as_json=session.as_json)
    hint = f"{run_id} goes on; follow it with `executorctl logs -f {run_id}`."
    try:
        run = Follower(session.client, run_id, view).follow()
        if run is not None:
            view.end(run, _changes(session, run))
    except BrokenPipeError:
        session.output.note(f"Nobody reads the output any more. {hint}")
        raise
    finally:
        view.close()
    if run is None:
        session.output.note(f"Detached: {hint}")
        return EXIT_INTERRUPTED
    if session.as_json:
        session.output.json(run)
    sys.stdout.flush()
    return process_exit_code(run)

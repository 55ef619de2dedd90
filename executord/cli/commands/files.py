"""`executorctl files` and `sync`: what a run has changed."""

import click

from executord.cli.client import quoted
from executord.cli.describe import path_of, result_words
from executord.cli.session import Command, Session, pass_session, run_argument
from executord.cli.terminal import safe


@click.command("files", cls=Command)
@run_argument
@pass_session
def files_command(session: Session, *, run_id: str) -> None:
    """List the files a run has changed.

    A for added, M for changed, D for deleted; of a live run as they are now.
    """
    answer = session.client.get(f"/v1/runs/{quoted(run_id)}/files")
    if session.as_json:
        session.output.json(answer)
        return
    changes = answer.get("changes") or []
    for change in changes:
        session.output.change(str(change.get("kind")), change.get("size_bytes"), path_of(change))
    if not changes:
        session.output.note("No file has changed.")


@click.command("sync", cls=Command)
@run_argument
@pass_session
def sync_command(session: Session, *, run_id: str) -> None:
    """Store a run's changed files now."""
    answer = session.client.post(f"/v1/runs/{quoted(run_id)}/sync", deadline_seconds=3600)
    if session.as_json:
        session.output.json(answer)
        return
    session.output.line(safe(result_words(answer.get("result") or answer) or "Stored."))

"""`executorctl files`: what a run has changed."""

import click

from executord.cli.client import quoted
from executord.cli.describe import path_of
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
    if answer.get("keeps_workspace"):
        name = safe(run_id)
        session.output.note(
            f"These files are on the node alone: `executorctl sync {name}` stores them, "
            f"`executorctl sync --discard {name}` gives them up."
        )

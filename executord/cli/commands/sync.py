"""`executorctl sync`: store what a run has changed, now or after all."""

import click

from executord.cli.client import quoted
from executord.cli.describe import result_words
from executord.cli.session import Command, Session, pass_session, run_argument
from executord.cli.terminal import safe
from executord.cli.units import duration

_DEADLINE_SECONDS = 3600.0


@click.command("sync", cls=Command)
@click.option(
    "--discard", is_flag=True, help="Give up, for good, what an ended run could not store."
)
@run_argument
@pass_session
def sync_command(session: Session, *, discard: bool, run_id: str) -> None:
    """Store a run's changed files now.

    Of a run that goes on, its processes stand still while the files are copied. Of one whose end
    could not store them, they are stored now, or given up with --discard.
    """
    answer = session.client.post(
        f"/v1/runs/{quoted(run_id)}/sync",
        {"discard": True} if discard else {},
        deadline_seconds=_DEADLINE_SECONDS,
    )
    if session.as_json:
        session.output.json(answer)
        return
    result = answer.get("result") or {}
    if discard:
        session.output.line("Given up: what the run had changed is deleted.")
        return
    session.output.line(safe(result_words(result)))
    if result.get("revision"):
        session.output.note(f"Revision: {safe(result['revision'])}")
    for line in result.get("skipped") or ():
        session.output.note(f"Left out: {safe(line)}")
    if answer.get("mid_run"):
        paused = duration(answer.get("paused_seconds"))
        session.output.note(f"The run stood still for {paused} ({safe(answer.get('way', ''))}).")

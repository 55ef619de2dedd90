"""`executorctl stop`: ask runs to stop."""

from typing import Any

import click

from executord.cli.client import quoted
from executord.cli.errors import EXIT_FAILED, ProblemError
from executord.cli.session import Command, Session, pass_session, runs_argument


@click.command("stop", cls=Command)
@runs_argument
@click.option("--discard", is_flag=True, help="Throw changed files away instead of keeping them.")
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="Between asking the code to end and killing it; the node's own, if not given.",
)
@click.option("--reason", metavar="TEXT", help="Kept with the run.")
@pass_session
def stop_command(
    session: Session,
    *,
    run_ids: tuple[str, ...],
    discard: bool,
    grace: float | None,
    reason: str | None,
) -> int:
    """Ask runs to stop.

    Returns at once; `executorctl wait` waits for the end. Changed files are kept unless discarded.
    """
    order: dict[str, Any] = {"results": "discard" if discard else "keep"}
    if grace is not None:
        order["grace_seconds"] = grace
    if reason:
        order["reason"] = reason
    asked, refused = [], []
    for run_id in run_ids:
        try:
            asked.append(session.client.post(f"/v1/runs/{quoted(run_id)}/stop", order))
        except ProblemError as error:
            refused.append({"run_id": run_id, **error.as_json()})
            if not session.as_json:
                session.output.error(f"{run_id}: {error.message}", error.advice)
        else:
            session.output.note(f"Asked {run_id} to stop.")
    if session.as_json:
        session.output.json({"runs": asked, "refused": refused})
    return EXIT_FAILED if refused else 0

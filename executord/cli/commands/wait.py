"""`executorctl wait`: until runs have ended."""

import time

import click

from executord.cli.client import JsonObject, quoted
from executord.cli.describe import why
from executord.cli.errors import EXIT_FAILED, ProblemError, UnreachableError
from executord.cli.resume import Patience, is_terminal, make_contact
from executord.cli.session import Command, Session, pass_session, runs_argument
from executord.cli.terminal import safe

_INTERVAL_SECONDS = 0.25


@click.command("wait", cls=Command)
@runs_argument
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0), help="Give up after so long."
)
@pass_session
def wait_command(session: Session, *, run_ids: tuple[str, ...], timeout: float | None) -> int:
    """Wait until runs have ended.

    Exits with 0 if all of them succeeded, else with 1.
    """
    ends_at = None if timeout is None else time.monotonic() + timeout
    ended = []
    make_contact(session.client)
    for run_id in dict.fromkeys(run_ids):
        run = _ended(session, run_id, ends_at)
        ended.append(run)
        if not session.as_json and not session.quiet:
            reason = f"  {safe(why(run))}" if is_terminal(str(run["state"])) else "  (still)"
            line = f"{run['id']} {session.output.state(run['state'])}{reason}"
            session.output.line(line.rstrip(), at_once=True)
    if session.as_json:
        session.output.json({"runs": ended})
    return 0 if all(run.get("state") == "Succeeded" for run in ended) else EXIT_FAILED


def _ended(session: Session, run_id: str, ends_at: float | None) -> JsonObject:
    """The run once it has ended, or as it is when the time is up."""
    patience = Patience(session.output.note)
    while True:
        try:
            run = session.client.get(f"/v1/runs/{quoted(run_id)}")
        except (UnreachableError, ProblemError) as error:
            if ends_at is not None and time.monotonic() >= ends_at:
                raise
            patience.lost(error)
            continue
        patience.connected()
        if is_terminal(str(run.get("state", ""))):
            return run
        rest = _INTERVAL_SECONDS
        if ends_at is not None:
            rest = min(rest, ends_at - time.monotonic())
            if rest <= 0:
                return run
        time.sleep(rest)

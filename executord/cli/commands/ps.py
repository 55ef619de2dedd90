"""`executorctl ps`: the runs of this node."""

from collections.abc import Iterator

import click

from executord.cli.client import JsonObject
from executord.cli.describe import why
from executord.cli.output import STATE_STYLES
from executord.cli.resume import is_terminal
from executord.cli.session import Command, Session, pass_session
from executord.cli.units import ago

_PAGE = 200
_HEADERS = ("run", "project", "state", "since", "tier", "command", "why")
_STATE, _COMMAND = 2, 40


def _complete_state(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [state for state in STATE_STYLES if state.lower().startswith(incomplete.lower())]


@click.command("ps", cls=Command)
@click.option("-a", "--all", "everything", is_flag=True, help="Ended runs too.")
@click.option(
    "--state",
    metavar="STATE",
    type=click.Choice(list(STATE_STYLES), case_sensitive=False),
    help="Only runs in this state.",
    shell_complete=_complete_state,
)
@click.option("--project", metavar="OWNER/NAME", help="Only runs of this project.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="At most so many, newest first.")
@pass_session
def ps_command(
    session: Session,
    *,
    everything: bool,
    state: str | None,
    project: str | None,
    limit: int | None,
) -> None:
    """List runs.

    Without -a or --state only those that have not ended; newest first.
    """
    runs = [
        run
        for run in _runs(session, state, project, limit)
        if everything or state or not is_terminal(str(run.get("state", "")))
    ]
    if session.as_json:
        session.output.json({"runs": runs})
    elif session.quiet:
        for run in runs:
            session.output.line(str(run["id"]))
    else:
        _table(session, runs)


def _runs(
    session: Session, state: str | None, project: str | None, limit: int | None
) -> Iterator[JsonObject]:
    cursor: str | None = None
    left = limit
    while left is None or left > 0:
        page = session.client.get(
            "/v1/runs",
            state=state,
            project=project,
            limit=_PAGE if left is None else min(left, _PAGE),
            cursor=cursor,
        )
        runs = page.get("runs") or []
        yield from runs
        left = None if left is None else left - len(runs)
        cursor = page.get("next_cursor")
        if not cursor:
            return


def _table(session: Session, runs: list[JsonObject]) -> None:
    if not runs:
        session.output.note("No runs. `executorctl ps -a` lists ended ones too.")
        return
    rows = [
        (
            run.get("id", ""),
            run.get("project", ""),
            run.get("state", ""),
            ago(run.get("state_since")),
            run.get("tier", ""),
            _shortened(_command_of(run)),
            why(run),
        )
        for run in runs
    ]
    styles = [
        [STATE_STYLES.get(str(row[_STATE]), "") if i == _STATE else "" for i in range(len(row))]
        for row in rows
    ]
    session.output.table(_HEADERS, rows, styles=styles)


def _command_of(run: JsonObject) -> str:
    words = (run.get("assignment") or {}).get("command") or run.get("command") or []
    return " ".join(str(word) for word in words)


def _shortened(text: str) -> str:
    return text if len(text) <= _COMMAND else f"{text[: _COMMAND - 1]}…"

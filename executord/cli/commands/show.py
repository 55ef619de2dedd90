"""`executorctl show`: everything about one run on one screen."""

import sys
import time
from collections.abc import Iterator, Sequence

import click

from executord.cli.client import JsonObject, quoted
from executord.cli.describe import (
    SIDES,
    costs_words,
    entered_state,
    exit_code_of,
    progress_words,
    result_words,
    total_seconds,
    usage_of,
    usage_words,
)
from executord.cli.output import STATE_STYLES
from executord.cli.resume import is_terminal
from executord.cli.session import Command, Session, pass_session, run_argument
from executord.cli.terminal import safe
from executord.cli.units import ago, clock, duration, moment, short_digest, unix_time

_BAR_CELLS = 30
_MAX_DIAGNOSTICS = 20


@click.command("show", cls=Command)
@run_argument
@pass_session
def show_command(session: Session, *, run_id: str) -> None:
    """Show one run: what happened when, why it ended, what it used."""
    run = session.client.get(f"/v1/runs/{quoted(run_id)}")
    if session.as_json:
        session.output.json(run)
        return
    output = session.output
    output.facts(_head(session, run))
    for title, lines in (
        ("Timeline", list(_timeline(session, run))),
        ("Why", _why(run)),
        ("Evidence", _evidence(run)),
        ("Stored while it ran", list(_syncs(run))),
        ("Result", _result(run)),
        ("Used", [usage_words(usage_of(run))]),
    ):
        given = [line for line in lines if line]
        if given:
            output.line()
            output.line(output.styled(title, "bold"))
            for line in given:
                output.line(f"  {line}")
    output.line()
    follow = "" if is_terminal(str(run.get("state", ""))) else "-f "
    output.line(
        output.styled("Console: ", "dim") + f"executorctl logs {follow}{safe(run.get('id', ''))}"
    )


def _head(session: Session, run: JsonObject) -> list[tuple[str, object]]:
    asked = run.get("assignment") or {}
    image = run.get("image") or {}
    environment = asked.get("environment") or {}
    revision = str((asked.get("files") or {}).get("revision") or "")
    labels = run.get("labels") or {}
    seconds = total_seconds(run)
    state = session.output.state(str(run.get("state", "")))
    facts: list[tuple[str, object]] = [
        ("Run", safe(run.get("id", ""))),
        (
            "State",
            f"{state} since {moment(run.get('state_since'))} ({ago(run.get('state_since'))})",
        ),
        ("Exit code", exit_code_of(run)),
        ("Took", "" if seconds is None else duration(seconds)),
        ("Project", _project(run)),
        ("Started by", safe(run.get("started_by") or "")),
        ("Tier", safe(run.get("tier") or "")),
        ("Command", safe(" ".join(str(word) for word in asked.get("command") or ()))),
        ("Files", safe(revision)),
        ("Image", safe(image.get("reference") or environment.get("image") or "")),
        ("Image id", safe(short_digest(str(image.get("id") or "")))),
        ("Labels", safe(", ".join(f"{key}={value}" for key, value in labels.items()))),
        ("Queue", _queue(run)),
    ]
    progress = (run.get("progress") or {}).values()
    facts += [("Now", safe(progress_words(stage))) for stage in progress]
    return facts


def _project(run: JsonObject) -> str:
    number = run.get("number")
    return safe(run.get("project") or "") + (f" #{number}" if number else "")


def _queue(run: JsonObject) -> str:
    position = run.get("queue_position")
    if position is None:
        return ""
    return "next" if position == 0 else f"{position} before it"


def _timeline(session: Session, run: JsonObject) -> Iterator[str]:
    """A line a state: when, how long, as a bar along the run's whole time, and what it cost."""
    rows = run.get("timeline") or []
    starts = [unix_time(row.get("time")) or 0.0 for row in rows]
    if not rows:
        return
    end = unix_time(run.get("ended_at")) or max(time.time(), starts[-1])
    for i, row in enumerate(rows):
        state = entered_state(row)
        until = starts[i + 1] if i + 1 < len(rows) else end
        over = is_terminal(state)
        bar = _bar(starts[0], end, starts[i], until) if not over else " " * _BAR_CELLS
        seconds = "" if over else duration(until - starts[i])
        # a transition carries what the stages before it cost
        costs = rows[i + 1].get("costs") if i + 1 < len(rows) else None
        words = costs_words(costs or ()) if not over else str(row.get("detail") or "")
        style = STATE_STYLES.get(state, "")
        yield (
            f"{clock(row.get('time'))}  {session.output.styled(f'{safe(state):<13}', style)}  "
            f"{session.output.styled(bar, style)}  {seconds:>9}  {safe(words)}"
        ).rstrip()


def _bar(first: float, last: float, start: float, until: float) -> str:
    """Where in the run's time a state lies; at least one cell wide."""
    total = max(last - first, 1e-9)
    left = min(int((start - first) / total * _BAR_CELLS), _BAR_CELLS - 1)
    right = min(max(round((until - first) / total * _BAR_CELLS), left + 1), _BAR_CELLS)
    full, empty = ("█", "·") if _can_draw_blocks() else ("#", ".")
    return empty * left + full * (right - left) + empty * (_BAR_CELLS - right)


def _can_draw_blocks() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


def _why(run: JsonObject) -> list[str]:
    explanation = run.get("explanation") or {}
    side = SIDES.get(str(explanation.get("side")), "")
    lines = [
        str(explanation.get("sentence") or ""),
        str(explanation.get("detail") or ""),
        f"Side: {side}" if side else "",
        f"What to do: {explanation['advice']}" if explanation.get("advice") else "",
    ]
    stop = run.get("stop") or {}
    if stop:
        by, reason = stop.get("by"), stop.get("reason")
        grace = duration(stop.get("grace_seconds"))
        lines.append(
            f"A stop was asked{f' by {by}' if by else ''}{f': {reason}' if reason else ''}"
            f" (results: {stop.get('results', 'keep')}, grace {grace})"
        )
    return [safe(line) for line in lines if line]


def _evidence(run: JsonObject) -> list[str]:
    """What was seen, without what says nothing."""
    seen = run.get("evidence") or {}
    telling = {k: v for k, v in seen.items() if v not in (None, False, "", 0) or k == "exit_code"}
    if run.get("state") == "Succeeded":
        return []
    width = max((len(key) for key in telling), default=0)
    return [safe(f"{key:<{width}}  {value}") for key, value in telling.items()]


def _syncs(run: JsonObject) -> Iterator[str]:
    """A line each time; the earliest are only counted."""
    syncs = run.get("syncs") or []
    earlier = int(run.get("sync_count") or 0) - len(syncs)
    if earlier > 0:
        yield f"{earlier} times before"
    for sync in syncs:
        paused = duration(sync.get("paused_seconds"))
        words = result_words(sync.get("result"))
        yield safe(f"{clock(sync.get('at'))}  {words}; it stood still for {paused}")


def _result(run: JsonObject) -> Sequence[str]:
    result = run.get("result") or {}
    lines = [result_words(result)]
    lines += [f"left out: {skipped}" for skipped in result.get("skipped") or ()]
    diagnostics = result.get("diagnostics")
    if isinstance(diagnostics, dict):
        shown = list(diagnostics.items())[:_MAX_DIAGNOSTICS]
        lines += [f"{key} = {_value(value)}" for key, value in shown]
    return [safe(line) for line in lines]


def _value(value: object) -> str:
    text = str(value.get("value", value)) if isinstance(value, dict) else str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"

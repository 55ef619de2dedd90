"""A run in words: how it ended, what its stages cost, what it used. Shared by run, show and wait.

Takes the daemon's JSON as it is; whatever is missing in it is left out.
"""

import base64
from collections.abc import Iterable, Sequence

from executord.cli.client import JsonObject
from executord.cli.resume import is_terminal
from executord.cli.terminal import safe
from executord.cli.units import duration, plural, short_digest, size, unix_time

_NAMED_CONFLICTS = 3

SIDES = {
    "user": "the run's own (its code, image or limits)",
    "platform": "the platform's (node, engine, store)",
}


def exit_code_of(run: JsonObject) -> int | None:
    """The container's exit code; None where it never ran, or nobody knows."""
    code = run.get("exit_code")
    return code if isinstance(code, int) else None


def process_exit_code(run: JsonObject) -> int:
    """What `executorctl run` exits with.

    0 only if the run succeeded; else the container's own code where it is known and not 0 (143
    for one that SIGTERM ended), else 1.
    """
    if run.get("state") == "Succeeded":
        return 0
    code = exit_code_of(run)
    return code if code is not None and 0 < code < 256 else 1


def why(run: JsonObject) -> str:
    """One line: why the run is in the state it is in; "" where there is nothing to say."""
    if not is_terminal(str(run.get("state", ""))):
        return _waiting_for(run)
    if run.get("state") == "Succeeded":
        return ""
    explanation = run.get("explanation") or {}
    return str(explanation.get("detail") or explanation.get("sentence") or run.get("reason") or "")


def _waiting_for(run: JsonObject) -> str:
    position = run.get("queue_position")
    if run.get("state") == "Queued" and isinstance(position, int):
        return "next in the queue" if position == 0 else f"{position} before it in the queue"
    return ", ".join(progress_words(stage) for stage in _stages(run))


def _stages(run: JsonObject) -> Sequence[JsonObject]:
    progress = run.get("progress") or {}
    return [stage for stage in progress.values() if isinstance(stage, dict)]


def progress_words(stage: JsonObject) -> str:
    """One line: "fetching, 12 of 40 files, 1.5 MiB of 20 MiB"."""
    words = [str(stage.get("what") or "working")]
    if stage.get("steps"):
        words.append(f"step {stage.get('step', 0)} of {stage['steps']}")
    if stage.get("files_total"):
        words.append(f"{stage.get('files_done', 0):,} of {plural(stage['files_total'], 'file')}")
    if stage.get("bytes_total"):
        words.append(f"{size(stage.get('bytes_done', 0))} of {size(stage['bytes_total'])}")
    words += pace_words(stage)
    if stage.get("detail"):
        words.append(str(stage["detail"]))
    return ", ".join(words)


def pace_words(stage: JsonObject) -> list[str]:
    """How quickly it goes, and how long it will take: ["12 MiB/s", "40.0 s left"]."""
    words = []
    if stage.get("bytes_per_second"):
        words.append(f"{size(stage['bytes_per_second'])}/s")
    if stage.get("seconds_left") is not None:
        words.append(f"{duration(float(stage['seconds_left']))} left")
    return words


def cost_words(cost: JsonObject) -> str:
    """One line: "prepare 12 ms (snapshot; 40 files, 1.5 MiB from cache)"."""
    name = str(cost.get("stage", ""))
    text = f"{name} {duration(cost.get('seconds'))}"
    notes = [str(cost["way"])] if cost.get("way") else []
    notes += [
        f"{amount} {word}"
        for amount, word in (
            (_amount(cost, "from_cache"), "from cache"),
            (_amount(cost, "fetched"), "fetched"),
            (_amount(cost, "sent"), "sent"),
        )
        if amount
    ]
    return f"{text} ({'; '.join(notes)})" if notes else text


def _amount(cost: JsonObject, kind: str) -> str:
    files, count = cost.get(f"files_{kind}") or 0, cost.get(f"bytes_{kind}") or 0
    parts = [plural(files, "file")] if files else []
    if count:
        parts.append(size(count))
    return ", ".join(parts)


def costs_words(costs: Iterable[JsonObject]) -> str:
    return ", ".join(cost_words(cost) for cost in costs)


def result_words(result: JsonObject | None) -> str:
    """One line: "2 added, 1 changed; kept as sha256:…, now the project's head"."""
    if not result:
        return ""
    if result.get("head") == "not_kept":
        return "what it changed was not kept"
    changes = [
        f"{result[kind]:,} {kind}" for kind in ("added", "changed", "deleted") if result.get(kind)
    ]
    words = ", ".join(changes) or "no file changed"
    revision = str(result.get("revision") or "")
    if revision:
        words += f"; kept as {short_digest(revision)}"
    if result.get("bytes_sent"):
        words += f" ({size(result['bytes_sent'])} sent)"
    return words + _head_words(result, revision)


def _head_words(result: JsonObject, revision: str) -> str:
    head = result.get("head")
    if head == "moved":
        return ", now the project's head"
    if head == "merged":
        merged = short_digest(str(result.get("head_revision") or ""))
        return f", merged with what others stored meanwhile: the project's head is now {merged}"
    if head == "conflict":
        return (
            f"; {_conflict_words(result)}, so it was left alone: "
            f"`executorctl pull {revision} DIR` fetches this run's files"
        )
    return ""


def _conflict_words(result: JsonObject) -> str:
    """Why the head stayed where it was."""
    paths = [str(path) for path in result.get("conflicts") or ()][:_NAMED_CONFLICTS]
    if not paths:
        return "the project's head does not come from the revision that the run began with"
    more = int(result.get("conflict_count") or 0) - len(paths)
    named = ", ".join(paths) + (f" and {plural(more, 'more path')}" if more > 0 else "")
    return f"somebody else moved the project's head meanwhile and changed {named} too"


def usage_words(summary: JsonObject | None) -> str:
    """One line: "12.4 s of CPU (0.90 cores on average, …), 210 MiB of memory at most"."""
    if not summary:
        return ""
    words = []
    if summary.get("cpu_seconds") is not None:
        words.append(
            f"{duration(summary['cpu_seconds'])} of CPU"
            f" ({summary.get('cpu_cores_average') or 0:.2f} cores on average,"
            f" {summary.get('cpu_cores_peak') or 0:.2f} at most)"
        )
    if summary.get("memory_peak_bytes") is not None:
        words.append(f"{size(summary['memory_peak_bytes'])} of memory at most")
    for name, word in (
        ("read_bytes", "read"),
        ("written_bytes", "written"),
        ("network_received_bytes", "received"),
        ("network_sent_bytes", "sent"),
    ):
        if summary.get(name):
            words.append(f"{size(summary[name])} {word}")
    if summary.get("oom_kills"):
        words.append(f"{plural(summary['oom_kills'], 'process')} killed for memory")
    return ", ".join(words)


def usage_of(run: JsonObject) -> JsonObject | None:
    """The summary, whether the run carries it bare or beside its samples."""
    usage = run.get("usage")
    if not isinstance(usage, dict):
        return None
    summary = usage.get("summary", usage)
    return summary if isinstance(summary, dict) else None


def total_seconds(run: JsonObject) -> float | None:
    """From acceptance to the end."""
    accepted, ended = unix_time(run.get("accepted_at")), unix_time(run.get("ended_at"))
    return None if accepted is None or ended is None else ended - accepted


def entered_state(row: JsonObject) -> str:
    """The state that a row of a timeline, or an event's data, tells of."""
    return str(row.get("to") or "")


def left_state(row: JsonObject) -> str:
    return str(row.get("from") or "")


def path_of(change: JsonObject) -> str:
    """The path; bytes in it that are not UTF-8 as surrogates."""
    encoded = change.get("path_base64")
    if encoded:
        return base64.b64decode(encoded).decode(errors="surrogateescape")
    return str(change.get("path") or "")


def end_lines(run: JsonObject) -> list[tuple[str, str]]:
    """What a person wants to know when a run has ended, as names and values."""
    explanation = run.get("explanation") or {}
    run_id = str(run.get("id", ""))
    state = str(run.get("state", ""))
    trouble = state not in ("Succeeded", "Stopped")
    sentence = str(explanation.get("sentence") or run.get("reason") or "")
    detail = str(explanation.get("detail") or "")
    advice = str(explanation.get("advice") or "")
    lines = [
        ("Why", " ".join(p for p in (sentence, detail) if p) if state != "Succeeded" else ""),
        ("Whose side", SIDES.get(str(explanation.get("side")), "") if trouble else ""),
        ("What to do", advice or (f"`executorctl show {run_id}`" if trouble else "")),
        ("Used", usage_words(usage_of(run))),
        ("Files", result_words(run.get("result"))),
        *(("Left out", line) for line in (run.get("result") or {}).get("skipped") or ()),
    ]
    return [(name, safe(value)) for name, value in lines if value]

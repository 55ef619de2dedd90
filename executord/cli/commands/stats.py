"""`executorctl stats`: what the host and its runs use now."""

import click

from executord.cli.client import JsonObject, quoted
from executord.cli.describe import usage_of, usage_words
from executord.cli.errors import ProblemError
from executord.cli.output import STATE_STYLES
from executord.cli.session import Command, Session, complete_run_id, pass_session
from executord.cli.units import duration, size

_HEADERS = (
    "run",
    "state",
    "cpu",
    "cpu time",
    "memory",
    "peak",
    "read",
    "written",
    "net in",
    "net out",
    "pids",
)
_NUMBERS = _HEADERS[2:]


@click.command("stats", cls=Command)
@click.argument("run_ids", metavar="[RUN…]", nargs=-1, shell_complete=complete_run_id)
@pass_session
def stats_command(session: Session, *, run_ids: tuple[str, ...]) -> None:
    """Show what runs and the host use now.

    Of a run that has ended: what it used as a whole.
    """
    answer = session.client.get("/v1/stats")
    live = {str(run.get("id")): run for run in answer.get("runs") or []}
    ended = [_ended(session, run_id) for run_id in run_ids if run_id not in live]
    if run_ids:
        answer["runs"] = [live[run_id] for run_id in run_ids if run_id in live]
        answer["ended"] = [{"id": run["id"], "usage": usage_of(run)} for run in ended]
    if session.as_json:
        session.output.json(answer)
        return
    if not run_ids:
        _host(session, answer.get("host") or {})
    if answer.get("runs"):
        _table(session, answer["runs"])
    for run in ended:
        words = usage_words(usage_of(run)) or "nothing is known of what it used"
        session.output.line(f"{run['id']} {session.output.state(str(run['state']))}: {words}")


def _ended(session: Session, run_id: str) -> JsonObject:
    run = session.client.get(f"/v1/runs/{quoted(run_id)}")
    if usage_of(run) is None:
        try:
            run["usage"] = session.client.get(f"/v1/runs/{quoted(run_id)}/usage")
        except ProblemError as error:
            if error.status not in (404, 501):
                raise
    return run


def _host(session: Session, host: JsonObject) -> None:
    total, free = host.get("memory_total_bytes"), host.get("memory_available_bytes")
    session.output.facts(
        [
            ("CPU", f"{host.get('cpu_cores_used') or 0:.2f} of {host.get('cpus', '-')} cores"),
            ("Load", f"{host.get('load_1m') or 0:.2f}"),
            ("Memory", f"{size(free)} of {size(total)} available"),
            (
                "Disk",
                f"{size(host.get('disk_free_bytes'))} of {size(host.get('disk_total_bytes'))} free",
            ),
        ]
    )
    session.output.line()


def _table(session: Session, runs: list[JsonObject]) -> None:
    rows, styles = [], []
    for run in runs:
        sample = run.get("sample") or {}
        state = str(run.get("state", ""))
        cores = sample.get("cpu_cores")
        rows.append(
            (
                run.get("id", ""),
                state,
                "-" if cores is None else f"{cores:.2f}",
                duration(sample.get("cpu_seconds")),
                _of_limit(sample),
                size(sample.get("memory_peak_bytes")),
                size(sample.get("read_bytes")),
                size(sample.get("written_bytes")),
                size(sample.get("network_received_bytes")),
                size(sample.get("network_sent_bytes")),
                "-" if sample.get("pids") is None else sample["pids"],
            )
        )
        styles.append(["", STATE_STYLES.get(state, ""), *[""] * len(_NUMBERS)])
    session.output.table(_HEADERS, rows, right=_NUMBERS, styles=styles)


def _of_limit(sample: JsonObject) -> str:
    used, limit = sample.get("memory_bytes"), sample.get("memory_limit_bytes")
    return f"{size(used)} / {size(limit)}" if limit else size(used)

"""`executorctl node`, `drain` and `resume`: the node as a whole."""

import click

from executord.cli.client import JsonObject
from executord.cli.session import Command, Session, pass_session
from executord.cli.terminal import safe
from executord.cli.units import ago, plural, size


@click.command("node", cls=Command)
@pass_session
def node_command(session: Session) -> None:
    """Show the node: tiers, room, engine, store."""
    node = session.client.get("/v1/node")
    if session.as_json:
        session.output.json(node)
        return
    session.output.facts([(name, value) for name, value in _facts(session, node) if value])
    tiers = node.get("tiers") or []
    if tiers:
        session.output.line()
        _tiers(session, tiers)


def _facts(session: Session, node: JsonObject) -> list[tuple[str, str]]:
    engine = node.get("engine")
    return [
        ("Node", safe(node.get("name", ""))),
        ("Version", safe(node.get("version", ""))),
        ("Started", ago(node.get("started_at"))),
        ("Takes runs", _accepting(session, node)),
        (
            "Runs",
            f"{node.get('running') or 0} hold a slot, {node.get('queued') or 0} wait"
            + (f" (at most {node['max_queue']:,})" if node.get("max_queue") else ""),
        ),
        (
            "Promised",
            f"{node.get('promised_cpus') or 0:g} of {node.get('cpus') or 0:g} CPUs, "
            f"{size(node.get('promised_memory_bytes'))} of {size(node.get('memory_bytes'))}"
            + (
                f", {node.get('promised_gpus') or 0} of {node['gpus']} GPUs"
                if node.get("gpus")
                else ""
            ),
        ),
        ("Store", safe(node.get("store_url") or "")),
        ("Working dir", safe(node.get("working_dir") or "")),
        ("Workspaces", workspace_words(node.get("workspaces"))),
        ("Engine", engine_words(engine) if engine else session.output.styled("silent", "red")),
    ]


def _accepting(session: Session, node: JsonObject) -> str:
    if node.get("accepting"):
        return session.output.styled("yes", "green")
    why = safe(node.get("why_not") or "")
    return session.output.styled("no", "red") + (f": {why}" if why else "")


def workspace_words(workspaces: JsonObject | None) -> str:
    """One line: "copy (set by files.mode); not overlay: …; reflink would work too"."""
    if not workspaces:
        return ""
    chosen = str(workspaces.get("chosen") or "")
    why_not = []
    for verdict in workspaces.get("verdicts") or []:
        if verdict.get("mode") == chosen:
            break
        mode, why = verdict.get("mode"), verdict.get("why")
        why_not.append(f"not {mode}: {why}" if why else f"{mode} would work too")
    forced = " (set by files.mode)" if workspaces.get("forced") else ""
    return safe("; ".join([f"{chosen}{forced}", *why_not]))


def engine_words(engine: JsonObject) -> str:
    """One line: "version 20.10 (API 1.41), overlay2, cgroup v1 (cgroupfs), live-restore off"."""
    words = [
        f"version {engine.get('version', '?')} (API {engine.get('api_version', '?')})",
        str(engine.get("storage_driver") or ""),
        f"cgroup v{engine.get('cgroup_version', '?')} ({engine.get('cgroup_driver', '?')})",
        f"live-restore {'on' if engine.get('live_restore') else 'off'}",
        str(engine.get("architecture") or ""),
    ]
    return safe(", ".join(word for word in words if word))


def _tiers(session: Session, tiers: list[JsonObject]) -> None:
    session.output.table(
        ("tier", "cpus", "memory", "gpus", "slots", "taken", "waiting"),
        [
            (
                tier.get("name", ""),
                f"{tier.get('cpus') or 0:g}",
                size(tier.get("memory_bytes")),
                tier.get("gpus") or 0,
                tier.get("max_runs") or "any",
                tier.get("promised_runs") or 0,
                tier.get("queued_runs") or 0,
            )
            for tier in tiers
        ],
        right=("cpus", "memory", "gpus", "slots", "taken", "waiting"),
    )


@click.command("drain", cls=Command)
@click.option(
    "--mode",
    type=click.Choice(["peaceful", "graceful", "fast"]),
    default="peaceful",
    show_default=True,
    help="Let runs end, stop them after a while, or stop them now.",
)
@pass_session
def drain_command(session: Session, *, mode: str) -> None:
    """Stop taking new runs."""
    _change(session, session.client.post("/v1/node/drain", {"mode": mode}), "takes no new runs")


@click.command("resume", cls=Command)
@pass_session
def resume_command(session: Session) -> None:
    """Take new runs again."""
    _change(session, session.client.post("/v1/node/resume"), "takes new runs")


def _change(session: Session, answer: JsonObject, now: str) -> None:
    if session.as_json:
        session.output.json(answer)
        return
    runs = answer.get("running")
    left = f"; {plural(runs, 'run')} left" if isinstance(runs, int) and runs else ""
    session.output.line(f"The node {now}{left}.")

"""`executorctl doctor`: is the node well, and if not, what mends it?"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from executord.cli.client import JsonObject
from executord.cli.commands.node import engine_words, workspace_words
from executord.cli.errors import EXIT_FAILED, CliError, ProblemError, UnreachableError
from executord.cli.session import Command, Session, pass_session
from executord.cli.terminal import safe

_STYLES = {"ok": "green", "warning": "yellow", "bad": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: how it came out, what was found, and what mends it."""

    check: str
    verdict: Literal["ok", "warning", "bad"]
    found: str
    mend: str = ""


@click.command("doctor", cls=Command)
@pass_session
def doctor_command(session: Session) -> int:
    """Check the node and say how to mend what is wrong.

    Exits with 0 if nothing is bad, 1 if something is, 3 if the daemon is not reachable.
    """
    findings = list(_findings(session))
    if session.as_json:
        session.output.json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            _print(session, finding)
    if any(finding.check == "daemon" and finding.verdict == "bad" for finding in findings):
        return UnreachableError.exit_code
    return EXIT_FAILED if any(finding.verdict == "bad" for finding in findings) else 0


def _findings(session: Session) -> Iterator[Finding]:
    try:
        session.client.get("/healthz")
    except CliError as error:
        yield Finding("daemon", "bad", error.message, error.advice)
        return
    yield Finding("daemon", "ok", f"answers at {session.socket}")
    yield _ready(session)
    try:
        node = session.client.get("/v1/node")
    except CliError as error:
        yield Finding("node", "bad", error.message, error.advice)
        return
    yield from _node_findings(node)


def _ready(session: Session) -> Finding:
    try:
        session.client.get("/readyz")
    except ProblemError as error:
        return Finding(
            "ready", "bad", error.message, error.advice or "`journalctl -u executord` tells more."
        )
    return Finding("ready", "ok", "the node can do its work")


def _node_findings(node: JsonObject) -> Iterator[Finding]:
    if node.get("accepting"):
        yield Finding("new runs", "ok", "the node takes new runs")
    else:
        yield Finding(
            "new runs",
            "warning",
            f"the node takes no new runs: {node.get('why_not') or 'it does not say why'}",
            "`executorctl resume`, if it was drained.",
        )
    yield from _engine_findings(node.get("engine"))
    yield from _workspace_findings(node.get("workspaces"))
    yield _store_finding(str(node.get("store_url") or ""))
    if not node.get("tiers"):
        yield Finding(
            "tiers", "bad", "there is no tier, so no run can start", "Add `[tiers.NAME]`."
        )


def _workspace_findings(workspaces: JsonObject | None) -> Iterator[Finding]:
    if not workspaces:
        return
    words = workspace_words(workspaces)
    if workspaces.get("chosen") == "overlay" or workspaces.get("forced"):
        yield Finding("workspaces", "ok", words)
        return
    yield Finding(
        "workspaces",
        "warning",
        words,
        "Every run's files are made one by one. Put `node.state_dir` on ext4, XFS or btrfs, not on "
        "top of an overlay; then an overlay works, and takes the same time for any project.",
    )


def _store_finding(url: str) -> Finding:
    """What can be seen from here: a client reaches the store by itself, as the daemon does."""
    if not url:
        return Finding("store", "bad", "no file store is named", "Set `[store] url`.")
    path = Path(url.removeprefix("file://"))
    if path.is_absolute() and not path.is_dir():
        mend = (
            "Mount its disk, or bring the directory back. "
            f"Only for a new, empty store: `mkdir -p {path}`."
        )
        return Finding("store", "bad", f"{path} is not there", mend)
    if path.is_absolute() and not os.access(path, os.W_OK):
        mend = "Nothing, unless you push or pull yourself: then ask for access to it."
        return Finding("store", "warning", f"{path} is not yours to write to", mend)
    return Finding("store", "ok", url)


def _engine_findings(engine: JsonObject | None) -> Iterator[Finding]:
    if not engine:
        yield Finding(
            "engine",
            "bad",
            "the container engine does not answer",
            "See `systemctl status docker`, and check `[engine] url`.",
        )
        return
    yield Finding("engine", "ok", engine_words(engine))
    if not engine.get("live_restore"):
        yield Finding(
            "live-restore",
            "warning",
            "a restart of the engine kills every run on this node",
            'Set `"live-restore": true` in /etc/docker/daemon.json and reload docker.',
        )


def _print(session: Session, finding: Finding) -> None:
    if session.quiet and finding.verdict == "ok":
        return
    verdict = session.output.styled(f"{finding.verdict:<8}", _STYLES[finding.verdict])
    session.output.line(f"{verdict} {finding.check:<13} {safe(finding.found)}")
    if finding.mend:
        session.output.line(f"{'':<22} {safe(finding.mend)}")

"""`executorctl cache prefetch`: what runs will need soon, made ready now."""

import sys
import time
from typing import Any

import click

from executord.cli.assignment import is_revision, not_whole, read_assignment
from executord.cli.client import JsonObject
from executord.cli.console import can_draw
from executord.cli.errors import EXIT_FAILED, CliError, UsageProblemError
from executord.cli.session import Command, Session, pass_session
from executord.cli.units import ago, plural, short_digest
from executord.cli.views import Bars

_PATH = "/v1/cache/prefetch"
_LOOK_SECONDS = 0.3
_STYLES = {"ready": "green", "failed": "red", "dropped": "yellow"}


@click.command("prefetch", cls=Command)
@click.argument(
    "source",
    metavar="FILE|-",
    required=False,
    type=click.Path(allow_dash=True, dir_okay=False),
)
@click.option("--detach", is_flag=True, help="Print the job and leave it to itself.")
@click.option("--show", is_flag=True, help="List the prefetches under way, and the last ones.")
@pass_session
def prefetch_command(session: Session, *, source: str | None, detach: bool, show: bool) -> int:
    """Fetch what FILE (JSON) names before a run needs it.

    FILE holds {"revisions": […], "images": [{"image": …}]}, or an assignment: then all that it
    needs is fetched. Exits with 1 where something could not be made ready.
    """
    if show:
        if source is not None or detach:
            raise UsageProblemError("--show stands alone: it asks for nothing new.")
        _show(session)
        return 0
    if source is None:
        raise UsageProblemError("Name a FILE (or - for standard input), or --show.")
    wanted = _wanted(read_assignment(source))
    _check(wanted)
    job = session.client.post(_PATH, wanted)
    if detach:
        _print(session, job, detached=True)
        return 0
    job = _followed(session, job)
    _print(session, job, detached=False)
    return 0 if job.get("state") == "ready" else EXIT_FAILED


def _wanted(given: JsonObject) -> JsonObject:
    """The request; of an assignment, what it needs."""
    if "command" not in given:
        return given
    named = [(given.get("files") or {}).get("revision")]
    named += [mount.get("revision") for mount in given.get("mounts") or ()]
    environment = given.get("environment") or {}
    image = {
        key: environment[key] for key in ("image", "dockerfile", "build_args") if key in environment
    }
    revisions = list(dict.fromkeys(revision for revision in named if revision))
    return {"revisions": revisions, "images": [image]}


def _check(wanted: JsonObject) -> None:
    """Only what the daemon could tell in a pattern alone."""
    revisions = wanted.get("revisions")
    for revision in revisions if isinstance(revisions, list) else ():
        if isinstance(revision, str) and not is_revision(revision):
            raise UsageProblemError(f"revisions: {not_whole(revision)}")


def _show(session: Session) -> None:
    answer = session.client.get(_PATH)
    jobs = answer.get("jobs") or []
    if session.as_json:
        session.output.json(answer)
    elif session.quiet:
        for job in jobs:
            session.output.line(str(job.get("id")))
    elif not jobs:
        session.output.note("No prefetch since the daemon started.")
    else:
        session.output.table(
            ("job", "state", "asked", "ready", "ended", "not ready"), [_row(job) for job in jobs]
        )


def _row(job: JsonObject) -> tuple[str, ...]:
    items: list[JsonObject] = job.get("items") or []
    left = [item for item in items if item.get("state") != "ready"]
    return (
        str(job.get("id")),
        str(job.get("state")),
        ago(job.get("asked_at")),
        f"{len(items) - len(left)} of {plural(len(items), 'item')}",
        ago(job.get("ended_at")),
        "; ".join(
            f"{_name(item)} {item.get('state')}"
            + (f": {item['detail']}" if item.get("detail") else "")
            for item in left
        ),
    )


def _followed(session: Session, job: JsonObject) -> JsonObject:
    """Until it has ended; bars where a person looks."""
    bars = Bars() if can_draw(sys.stderr) and not session.quiet and not session.as_json else None
    try:
        while job.get("state") == "working":
            if bars is not None:
                bars.show(_under_way(job))
            time.sleep(_LOOK_SECONDS)
            job = _job(session, str(job.get("id")))
    finally:
        if bars is not None:
            bars.clear()
    return job


def _job(session: Session, job_id: str) -> JsonObject:
    for job in session.client.get(_PATH).get("jobs") or ():
        if job.get("id") == job_id:
            found: JsonObject = job
            return found
    raise CliError(
        f"The daemon does not know the prefetch {job_id} any more.",
        advice="It has been restarted: ask for the prefetch again; what is here already stays.",
    )


def _under_way(job: JsonObject) -> dict[str, JsonObject]:
    """What is being worked on, by number, as stages are shown."""
    shown: dict[str, JsonObject] = {}
    for number, item in enumerate(job.get("items") or ()):
        progress = dict(item.get("progress") or {})
        if item.get("state") in ("working", "waiting") and (progress or item.get("detail")):
            progress["what"] = f"{_name(item)}: {progress.get('what') or item.get('state')}"
            progress["detail"] = progress.get("detail") or item.get("detail") or ""
            shown[str(number)] = progress
    return shown


def _name(item: JsonObject) -> str:
    name = str(item.get("name") or "")
    return short_digest(name) if item.get("kind") == "revision" else name


def _print(session: Session, job: JsonObject, *, detached: bool) -> None:
    output = session.output
    if session.as_json:
        output.json(job)
        return
    if detached:
        output.line(str(job.get("id")))
        output.note("`executorctl cache prefetch --show` tells how far it is.")
        return
    items: list[dict[str, Any]] = job.get("items") or []
    output.table(
        ("kind", "name", "state", "way", "why"),
        [
            (item.get("kind"), _name(item), item.get("state"), item.get("way"), item.get("detail"))
            for item in items
        ],
        styles=[("", "", _STYLES.get(str(item.get("state")), ""), "", "") for item in items],
    )

"""Project files to and from the file store, which the client speaks to itself.

The store's library is slow to import; it is imported only here, and only once it is needed.
"""

import re
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from executord.cli.console import can_draw
from executord.cli.errors import CliError, UsageProblemError
from executord.cli.session import Session
from executord.cli.terminal import safe
from executord.cli.units import duration, plural, short_digest, size
from executord.cli.views import Bars

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from executord.files.client.pull import Pulled
    from executord.files.client.push import Pushed
    from executord.files.store.store import Store
    from executord.ports import FileChange, OnProgress, Progress

_MOST_SKIPPED = 10
_MOST_CONFLICTS = 5
_DRAW_INTERVAL_SECONDS = 0.1

store_option = click.option(
    "--store",
    metavar="URL",
    envvar="EXECUTORD_STORE",
    help="The file store (EXECUTORD_STORE); the node's own, if not given.",
)


def project_of(directory: Path, owner: str) -> str:
    """The project a directory belongs to if nobody says: its name, under its owner's."""
    name = _as_name(directory.resolve().name) or "project"
    return f"{_as_name(owner) or 'local'}/{name}"


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60]


def store_url(session: Session, given: str | None) -> str:
    """Raises UsageProblemError where neither the caller nor the node names one."""
    url = given or str(session.client.get("/v1/node").get("store_url") or "")
    if not url:
        raise UsageProblemError(
            "No file store is named, and the node names none.",
            advice="Name it with --store or EXECUTORD_STORE, for instance file:///srv/store.",
        )
    return url


def push(
    session: Session,
    directory: Path,
    *,
    project: str,
    author: str,
    message: str = "",
    store: str | None = None,
) -> "Pushed":
    """Store `directory` as the project's new head; says on stderr what it did."""
    url = store_url(session, store)
    began = time.monotonic()
    with _shown_work(session) as on_progress:
        from executord.files.client.push import push_directory  # noqa: PLC0415 - slow to import

        pushed = push_directory(
            _opened(url),
            directory,
            project,
            author=author,
            message=message,
            on_progress=on_progress,
        )
    _tell_pushed(session, pushed, project, time.monotonic() - began)
    return pushed


def _tell_pushed(session: Session, pushed: "Pushed", project: str, seconds: float) -> None:
    whole = f"{plural(pushed.files, 'file')}, {size(pushed.bytes)}"
    if pushed.head == "unchanged":
        session.output.note(f"Nothing new in {project} ({whole}); looked in {duration(seconds)}.")
    else:
        session.output.note(
            f"Pushed {project} ({whole}; sent {plural(pushed.files_sent, 'file')}, "
            f"{size(pushed.bytes_sent)}) as {short_digest(pushed.revision)} in {duration(seconds)}."
        )
    if pushed.head == "conflict":
        session.output.warn(
            f"Somebody else moved the head of {project} meanwhile: the revision is stored, but the "
            f"project does not point to it.{_named(pushed.conflicts, pushed.conflict_count)}"
        )
    elif pushed.head == "merged":
        session.output.note(
            f"Somebody else moved the head of {project} meanwhile: both sides are merged in "
            f"{short_digest(pushed.head_revision)}. This directory has only its own side."
        )
    for line in pushed.skipped[:_MOST_SKIPPED]:
        session.output.warn(f"Left out: {line}")
    if len(pushed.skipped) > _MOST_SKIPPED:
        session.output.warn(f"Left out: {len(pushed.skipped) - _MOST_SKIPPED:,} more.")


def _named(conflicts: "Sequence[str]", count: int) -> str:
    if not conflicts:
        return ""
    named = ", ".join(safe(path) for path in conflicts[:_MOST_CONFLICTS])
    more = f" and {count - _MOST_CONFLICTS:,} more" if count > _MOST_CONFLICTS else ""
    return f" Changed on both sides: {named}{more}."


def pull(session: Session, revision: str, directory: Path, *, store: str | None) -> "Pulled":
    url = store_url(session, store)
    with _shown_work(session) as on_progress:
        from executord.files.client.pull import pull_revision  # noqa: PLC0415 - slow to import

        return pull_revision(_opened(url), revision, directory, on_progress=on_progress)


def diff(session: Session, old: str, new: str, *, store: str | None) -> "Sequence[FileChange]":
    url = store_url(session, store)
    with _shown_work(session):
        from executord.files.client.pull import diff_revisions  # noqa: PLC0415 - slow to import

        return list(diff_revisions(_opened(url), old, new))


def _opened(url: str) -> "Store":
    from executord.files.client.statcache import default_home  # noqa: PLC0415 - slow to import
    from executord.files.store.store import Store  # noqa: PLC0415 - slow to import

    return Store.open(url, {}, packs_home=default_home() / "packs-v1")


@contextmanager
def _shown_work(session: Session) -> "Iterator[OnProgress]":
    """Progress bars where they can be drawn; what the store finds wrong becomes a CliError."""
    from executord.core.reasons import MEANINGS, FaultError  # noqa: PLC0415 - slow to import
    from executord.files.client.pull import PullError  # noqa: PLC0415 - slow to import
    from executord.files.client.push import PushError  # noqa: PLC0415 - slow to import
    from executord.files.store.store import BadProjectError  # noqa: PLC0415 - slow to import

    bars = Bars() if can_draw(sys.stderr) and not session.quiet else None
    try:
        yield _drawn_on(bars)
    except FaultError as error:
        fault = error.fault
        raise CliError(fault.detail, advice=MEANINGS[fault.reason].advice) from error
    except (PushError, PullError) as error:
        raise CliError(str(error)) from error
    except BadProjectError as error:
        raise UsageProblemError(f"{error}.") from error
    finally:
        if bars is not None:
            bars.clear()


def _drawn_on(bars: Bars | None) -> "OnProgress":
    one_at_a_time = threading.Lock()  # the store's threads tell it
    drawn_at = 0.0

    def draw(progress: "Progress") -> None:
        nonlocal drawn_at
        if bars is None:
            return
        with one_at_a_time:
            if time.monotonic() - drawn_at >= _DRAW_INTERVAL_SECONDS:
                drawn_at = time.monotonic()
                bars.show({"files": asdict(progress)})

    return draw

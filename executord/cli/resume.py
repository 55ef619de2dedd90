"""Streams that outlive their connection: after a loss they go on where they were.

A console goes on by byte offset, events go on by sequence number. What comes twice is dropped,
so nothing is lost and nothing is shown twice.
"""

import base64
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from executord.cli.client import Client, JsonObject, QuietError, quoted
from executord.cli.errors import ProblemError, UnreachableError

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
GIVE_UP_SECONDS = 600.0
"""A daemon that stays away this long without one good answer is not waited for any longer."""

StreamName: TypeAlias = Literal["stdout", "stderr", "build", "gap"]
Notice: TypeAlias = Callable[[str], None]


def make_contact(client: Client) -> None:
    """Raises UnreachableError: only a daemon that was there once is worth waiting for."""
    client.get("/healthz")


class Patience:
    """Waits between tries, longer each time, and says once that it waits and once that it ended."""

    def __init__(
        self,
        notice: Notice,
        *,
        give_up_seconds: float = GIVE_UP_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._notice = notice
        self._give_up_seconds = give_up_seconds
        self._sleep = sleep
        self._pause = FIRST_PAUSE_SECONDS
        self._lost_at: float | None = None
        self._told = False

    def connected(self) -> None:
        if self._told:
            self._notice("Connected to the daemon again.")
        self._pause, self._lost_at, self._told = FIRST_PAUSE_SECONDS, None, False

    def lost(self, error: UnreachableError | ProblemError) -> None:
        """Wait before the next try; raises `error` where trying on makes no sense."""
        if isinstance(error, ProblemError) and error.status not in (429, 502, 503, 504):
            raise error
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at > self._give_up_seconds:
            raise error
        if not self._told:
            self._told = True
            self._notice(f"{error.message} Trying again…")
        self.pause()

    def pause(self) -> None:
        self._sleep(self._pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Record:
    """A piece of console output; `lost_bytes` counts what a gap leaves out (0: nobody knows)."""

    offset: int
    time: float | str
    stream: StreamName
    data: bytes
    lost_bytes: int

    @property
    def end(self) -> int:
        return self.offset + len(self.data) + self.lost_bytes


def record_of(answer: JsonObject) -> Record:
    if "data_base64" in answer and answer["data_base64"] is not None:
        data = base64.b64decode(answer["data_base64"])
    else:
        data = str(answer.get("data") or "").encode(errors="surrogateescape")
    return Record(
        offset=int(answer.get("offset", 0)),
        time=answer.get("time", 0.0),
        stream=answer.get("stream", "stdout"),
        data=data,
        lost_bytes=int(answer.get("lost_bytes") or 0),
    )


def _from(record: Record, position: int) -> Record | None:
    """The part of `record` at and after `position`; None where nothing of it is new."""
    if record.offset >= position:
        return record
    if record.stream == "gap" or record.end <= position:
        return record if record.stream == "gap" and record.end > position else None
    cut = position - record.offset
    return Record(position, record.time, record.stream, record.data[cut:], record.lost_bytes)


def console(
    client: Client,
    run_id: str,
    *,
    since: int = 0,
    stream: str | None = None,
    follow: bool = True,
    patience: Patience,
) -> Iterator[Record]:
    """A run's console from byte `since`; with `follow` until the run is over and all of it came."""
    path = f"/v1/runs/{quoted(run_id)}/logs"
    if not follow:
        yield from _console_pages(client, path, since=since, stream=stream)
        return
    position = since
    run_was_over = False
    while True:
        try:
            for answer in client.stream(path, since=position, follow=True, stream=stream):
                patience.connected()
                record = _from(record_of(answer), position)
                if record is not None:
                    yield record
                    position = max(position, record.end)
            if run_was_over:
                return
            run_was_over = _is_over(client, run_id)
        except QuietError:
            continue
        except (UnreachableError, ProblemError) as error:
            patience.lost(error)
            continue
        if not run_was_over:
            patience.pause()


def _is_over(client: Client, run_id: str) -> bool:
    """Whether the run has ended, so that the stream's end was the console's end.

    A daemon that shuts down ends its streams as properly as one whose run is over.
    """
    return is_terminal(str(client.get(f"/v1/runs/{quoted(run_id)}").get("state", "")))


def is_terminal(state: str) -> bool:
    return state in ("Succeeded", "Stopped", "Failed", "Error")


def _console_pages(
    client: Client, path: str, *, since: int, stream: str | None
) -> Iterator[Record]:
    position = since
    while True:
        asked_from = position
        page = client.get(path, since=position, stream=stream)
        for answer in page.get("records", []):
            record = _from(record_of(answer), position)
            if record is not None:
                yield record
                position = max(position, record.end)
        following = int(page.get("next_offset") or 0)
        if following <= asked_from or page.get("more") is False:
            return
        position = following


def events(
    client: Client, *, after: int = 0, follow: bool = True, patience: Patience
) -> Iterator[JsonObject]:
    """The node's transitions as CloudEvents, in order; with `follow` they never end."""
    position = after
    if not follow:
        yield from _event_pages(client, position)
        return
    while True:
        try:
            for event in client.stream("/v1/events", after=position, follow=True):
                patience.connected()
                if sequence_of(event) > position:
                    yield event
                    position = sequence_of(event)
            patience.pause()
        except QuietError:
            continue
        except (UnreachableError, ProblemError) as error:
            patience.lost(error)


def _event_pages(client: Client, after: int) -> Iterator[JsonObject]:
    while True:
        page = client.get("/v1/events", after=after)
        fresh = [event for event in page.get("events", []) if sequence_of(event) > after]
        yield from fresh
        # a page may hold nothing that the caller may see, and still not be the last one
        following = int(page.get("next_after") or 0)
        if fresh:
            following = max(following, sequence_of(fresh[-1]))
        if following <= after:
            return
        after = following


def sequence_of(event: JsonObject) -> int:
    data = event.get("data")
    value = data.get("seq") if isinstance(data, dict) else None
    return int(value or 0)

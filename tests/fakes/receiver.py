"""An upstream: a real HTTP server on loopback that takes CloudEvents batches and keeps score.

It runs in a thread of its own, so a test may use it with or without an event loop:

    with Receiver() as receiver:
        ...url=receiver.url...
        receiver.check()
"""

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Event = dict[str, Any]

_PATIENCE_SECONDS = 20.0


@dataclass
class Answer:
    """What to say to the next batch instead of keeping it."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""


class Receiver:
    """Misbehave by attribute, at any time:

    - `go_down()` refuses connections until `go_up()`; both on the same port.
    - `slow_seconds` passes before each answer.
    - `lose_replies`: as many batches are kept, but the connection is cut instead of an answer.
    - `refuse`: run id → status; a batch that holds one of its events is answered so. None of the
      batch is kept, or with `keeps_half` what comes before the refused event.
    - `answers`: said to the next batches, one each, and nothing is kept.
    - `always`: said to every request, empty batches included.
    """

    def __init__(self) -> None:
        self.slow_seconds = 0.0
        self.lose_replies = 0
        self.refuse: dict[str, int] = {}
        self.keeps_half = False
        self.answers: deque[Answer] = deque()
        self.always: Answer | None = None
        self.events: list[Event] = []
        self.repeats = 0
        self.requests = 0
        self.headers: list[Mapping[str, str]] = []
        self.problems: list[str] = []
        self._by_id: dict[str, Event] = {}
        self._last_number: dict[str, int] = {}
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="receiver", daemon=True)
        self._port = 0
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.go_up()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_SECONDS)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/events"

    def go_up(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_PATIENCE_SECONDS)

    def go_down(self) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(_PATIENCE_SECONDS)

    # -- what came -----------------------------------------------------------------------------

    def check(self) -> None:
        """No gap and no disorder within any run, no repetition with other content, no seq twice."""
        with self._changed:
            problems = list(self.problems)
        seqs = self.distinct_seqs()
        if len(seqs) != len(set(seqs)):
            problems.append("two transitions have the same seq")
        assert not problems, "\n".join(problems[:20])

    def distinct_seqs(self) -> list[int]:
        """Of all events, repetitions left out, sorted."""
        with self._changed:
            return sorted(event["data"]["seq"] for event in self._by_id.values())

    def last_seq(self) -> int:
        """The highest so far; 0 before the first."""
        return max(self.distinct_seqs(), default=0)

    def numbers(self, run_id: str) -> list[int]:
        """Of one run, in the order in which they came, repetitions included."""
        with self._changed:
            of_run = [event["data"] for event in self.events if event["subject"] == run_id]
        return [data["number"] for data in of_run]

    def wait_for(self, distinct: int, *, within_seconds: float = _PATIENCE_SECONDS) -> None:
        """Until so many different events are here."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self._by_id) >= distinct, within_seconds)
            assert enough, f"{len(self._by_id)} of {distinct} events came"

    # -- the server ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self._runner:
            return
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/events", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener).start()

    async def _shut(self) -> None:
        if self._runner:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests += 1
        self.headers.append(dict(request.headers))
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        if self.always:
            return _said(self.always)
        if self.answers:
            return _said(self.answers.popleft())
        media_type = request.headers.get("Content-Type", "").partition(";")[0]
        if media_type != "application/cloudevents-batch+json":
            self.problems.append(f"the content type is {media_type!r}")
        batch = json.loads(body)
        for place, event in enumerate(batch):
            status = self.refuse.get(event["subject"])
            if status is not None:
                self._keep(batch[:place] if self.keeps_half else [])
                return web.Response(status=status, text=f"no {event['subject']} here")
        self._keep(batch)
        if self.lose_replies > 0:
            self.lose_replies -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=202)

    def _keep(self, batch: list[Event]) -> None:
        with self._changed:
            for event in batch:
                self._keep_one(event)
            self._changed.notify_all()

    def _keep_one(self, event: Event) -> None:
        self.events.append(event)
        known = self._by_id.get(event["id"])
        if known is not None:
            self.repeats += 1
            if known != event:
                self.problems.append(f"{event['id']} came again with other content")
            return
        run_id, number = event["subject"], event["data"]["number"]
        expected = self._last_number.get(run_id, 0) + 1
        if number != expected:
            self.problems.append(f"{run_id}: number {number} came where {expected} was due")
        self._last_number[run_id] = max(number, expected)
        self._by_id[event["id"]] = event


def _said(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, text=answer.body)

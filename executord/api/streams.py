"""Streams: NDJSON, or server-sent events; alive, resumable, bounded.

A stream that ends properly is complete. One that cannot go on is broken off, so that no reader
takes a part for the whole.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

import structlog
from aiohttp import web

from executord.api import problems
from executord.api.calls import Item, closing
from executord.api.limits import Limits

log = structlog.get_logger(__name__)

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"

_QUEUED_ITEMS = 64
_WRITE_BYTES = 256 * 1024
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _End:
    """Nothing more comes; `error` says that it should have."""

    error: Exception | None = None


async def send(
    request: web.Request, items: AsyncIterator[Item], limits: Limits
) -> web.StreamResponse:
    """Writes until `items` ends; whatever happens, its generator is closed when this returns.

    To be cancelled when the client has gone, or the daemon leaves.
    """
    as_events = SSE in request.headers.get("Accept", "")
    response = web.StreamResponse(
        headers={
            "Content-Type": SSE if as_events else NDJSON,
            "Cache-Control": "no-store",
            "Server": "executord",
        }
    )
    await response.prepare(request)
    writer = _Writer(request, response, limits, as_events=as_events)
    queue: asyncio.Queue[Item | _End] = asyncio.Queue(_QUEUED_ITEMS)
    pump = asyncio.create_task(_pump(items, queue))
    try:
        end = await _copy(queue, writer, limits)
        if end.error is None:
            await writer.end()
        else:
            await writer.fail(_told(end.error, request.path))
    except ConnectionError:
        writer.cut()
    finally:
        pump.cancel()
        await asyncio.wait({pump}, timeout=_CLOSE_SECONDS)
    return response


async def _pump(items: AsyncIterator[Item], queue: "asyncio.Queue[Item | _End]") -> None:
    end = _End()
    try:
        async with closing(items):
            async for item in items:
                await queue.put(item)
    except Exception as error:  # noqa: BLE001 - told to the reader, and logged there
        end = _End(error)
    await queue.put(end)


async def _copy(queue: "asyncio.Queue[Item | _End]", writer: "_Writer", limits: Limits) -> _End:
    """Writes as many items at once as there are."""
    while True:
        try:
            async with asyncio.timeout(limits.heartbeat_seconds):
                item = await queue.get()
        except TimeoutError:
            await writer.heartbeat()
            continue
        pieces, size = [], 0
        while isinstance(item, Item):
            pieces.append(writer.form(item))
            size += len(pieces[-1])
            if size > _WRITE_BYTES or queue.empty():
                break
            item = queue.get_nowait()
        if pieces:
            await writer.write(b"".join(pieces))
        if isinstance(item, _End):
            return item


def _told(error: Exception, path: str) -> problems.Problem:
    told = problems.of_error(error)
    return (told or problems.of_mistake(error, path=path)).problem


class _Writer:
    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        limits: Limits,
        *,
        as_events: bool,
    ) -> None:
        self._request = request
        self._response = response
        self._limits = limits
        self._as_events = as_events

    def form(self, item: Item) -> bytes:
        if not self._as_events:
            return item.data + b"\n"
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (
            item.resume_id.encode(),
            item.kind.encode(),
            item.data,
        )

    async def heartbeat(self) -> None:
        await self.write(b":\n\n" if self._as_events else b"\n")

    async def end(self) -> None:
        """A reader of events would connect again if it were not told that this is the end."""
        if self._as_events:
            await self.write(b"event: end\ndata: {}\n\n")
        await self._in_time(self._response.write_eof())

    async def fail(self, problem: problems.Problem) -> None:
        if self._as_events:
            await self.write(b"event: error\ndata: %b\n\n" % problems.encode(problem))
        self.cut()

    async def write(self, data: bytes) -> None:
        await self._in_time(self._response.write(data))

    def cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.close()

    async def _in_time(self, writing: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                await writing
        except TimeoutError:
            log.info("api.client_too_slow", path=self._request.path)
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionAbortedError from None

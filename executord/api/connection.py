"""One client's connection: who it is, how many it may have, how slow it may be."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from executord.api import problems
from executord.api.access import Caller, Roles, caller_of
from executord.api.limits import Limits

log = structlog.get_logger(__name__)

NOBODY = Caller(uid=-1, gid=-1)
"""Over TCP the kernel does not tell who calls."""


class Gate:
    """Counts the connections of each user."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[int] = Counter()
        self._told: set[int] = set()

    def enter(self, caller: Caller) -> bool:
        if self._open[caller.uid] < self._most:
            self._open[caller.uid] += 1
            return True
        if caller.uid not in self._told:  # once, however often it is tried
            self._told.add(caller.uid)
            log.warning("api.too_many_connections", uid=caller.uid, pid=caller.pid)
        return False

    def leave(self, uid: int) -> None:
        self._told.discard(uid)
        self._open[uid] -= 1
        if not self._open[uid]:
            del self._open[uid]


Identify = Callable[[asyncio.BaseTransport], Caller]


def by_peer(roles: Roles) -> Identify:
    return lambda transport: caller_of(transport.get_extra_info("socket"), roles)


def as_nobody(_transport: asyncio.BaseTransport) -> Caller:
    return NOBODY


class Connection(RequestHandler):
    """The caller is asked of the kernel once, when the connection is made.

    The library's own idle limit holds between requests; a request whose head has begun and does
    not end is this class's matter.
    """

    def __init__(
        self,
        server: web.Server,
        *,
        identify: Identify,
        gate: Gate,
        limits: Limits,
        **options: Any,
    ) -> None:
        super().__init__(server, keepalive_timeout=limits.idle_seconds, **options)
        self.caller = NOBODY
        self._identify = identify
        self._gate = gate
        self._limits = limits
        self._entered = False
        self._answering = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        transport = cast("asyncio.Transport", transport)
        try:
            self.caller = self._identify(transport)
        except OSError as error:
            log.warning("api.peer_unknown", error=str(error))
            self._turn_away(transport, b"")
            return
        self._entered = self._gate.enter(self.caller)
        if not self._entered:
            self._turn_away(transport, _too_many(self._limits.connections_per_uid))
            return
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if data and not self._answering and self._head_timer is None:
            loop = asyncio.get_running_loop()
            self._head_timer = loop.call_later(self._limits.head_seconds, self._head_is_late)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        if self._entered:
            self._entered = False
            self._gate.leave(self.caller.uid)
        super().connection_lost(exc)

    def answering_begins(self) -> None:
        self._answering = True
        self._stop_head_timer()

    def answering_ends(self) -> None:
        self._answering = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP never reaches a route; it gets a problem document all the same."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already; no other can be sent")
        if status < 500:
            told = problems.tell("bad_request", f"This is not HTTP/1.1: {_first_line(message)}")
        else:
            mistake = exc if isinstance(exc, Exception) else RuntimeError(message or status)
            told = problems.of_mistake(mistake)
        response = answer_of(told)
        response.force_close()
        return response

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._answering:
            self.force_close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _turn_away(self, transport: asyncio.Transport, answer: bytes) -> None:
        if answer:
            transport.write(answer)
        transport.close()
        self.force_close()


def answer_of(told: problems.Told) -> web.Response:
    return web.Response(
        status=told.status,
        body=problems.encode(told.problem),
        headers={
            **told.headers,
            "Content-Type": problems.CONTENT_TYPE,
            "Server": "executord",
            "Cache-Control": "no-store",
        },
    )


def _too_many(most: int) -> bytes:
    told = problems.tell(
        problems.TOO_MANY_CONNECTIONS,
        f"Your user has {most} connections open, which is the limit. Close some, or share them.",
        retry_after_seconds=1,
    )
    body = problems.encode(told.problem)
    head = (
        f"HTTP/1.1 {told.status} Too Many Requests\r\n"
        f"Content-Type: {problems.CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Retry-After: 1\r\nConnection: close\r\nServer: executord\r\n\r\n"
    )
    return head.encode() + body


def _first_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return lines[0][:200] if lines else "it cannot be read"

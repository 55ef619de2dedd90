"""From a request to its route and back: access, body, query, the handler, and every error."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from aiohttp import hdrs, web

from executord.api import problems, shown, streams
from executord.api.access import Caller
from executord.api.calls import Call, Follow, Reply
from executord.api.checks import body_of, query_of
from executord.api.connection import Connection, answer_of
from executord.api.limits import Limits
from executord.api.matching import Matcher
from executord.api.problems import ProblemError
from executord.api.routes import Route
from executord.api.services import Services
from executord.api.wire import MAX_BODY_BYTES
from executord.core.refusals import Refusal

log = structlog.get_logger(__name__)

_JSON = "application/json"
_UTF8 = frozenset({None, "utf-8", "utf8"})


class Dispatcher:
    """Handles the requests of one kind of socket.

    What a POST has begun is finished even where the client goes away meanwhile.
    """

    def __init__(self, *, services: Services, table: Iterable[Route], limits: Limits) -> None:
        self._services = services
        self._limits = limits
        self._matcher = Matcher(table)
        self._decoders = {
            route.name: msgspec.json.Decoder(route.body)
            for route in self._matcher.routes
            if route.body is not None
        }
        self._unfinished: set[asyncio.Task[Reply | Follow]] = set()
        self._streaming: set[asyncio.Task[Any]] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.answering_begins()
        began = time.monotonic()
        try:
            response = await self._respond(request, connection.caller)
        finally:
            connection.answering_ends()
        log.debug(
            "api.request",
            method=request.method,
            path=request.path,
            status=response.status,
            uid=connection.caller.uid,
            seconds=round(time.monotonic() - began, 6),
        )
        return response

    async def stop_streams(self) -> None:
        """They break off, and their readers come back later."""
        tasks = list(self._streaming)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._limits.finish_seconds)

    async def finish(self) -> None:
        """Wait, not for ever, until what was begun is done."""
        if self._unfinished:
            await asyncio.wait(set(self._unfinished), timeout=self._limits.finish_seconds)

    # -- one request -----------------------------------------------------------------------------

    async def _respond(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        try:
            answer = await self._answer(request, caller)
            if isinstance(answer, Follow):
                return await self._stream(request, answer)
            response = _response_of(answer)
        except Exception as error:  # noqa: BLE001 - every error leaves as a problem document
            response = answer_of(_told(error, request))
            if response.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.EXPECTATION_FAILED):
                response.force_close()
        return await self._write(request, response)

    async def _answer(self, request: web.Request, caller: Caller) -> Reply | Follow:
        route, run_id = self._matcher.match(request.method, request.rel_url.raw_path)
        _refuse_stranger(route, caller)
        _check_expectation(request)
        query = query_of(request.query, route.query)
        call = Call(
            services=self._services,
            caller=caller,
            access=route.access,
            query=query,
            body=await self._body(request, route),
            run_id=run_id,
            last_event_id=request.headers.get("Last-Event-ID", ""),
        )
        if route.method == hdrs.METH_GET:
            return await route.handler(call)
        task = asyncio.ensure_future(route.handler(call))
        self._unfinished.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: "asyncio.Task[Reply | Follow]") -> None:
        self._unfinished.discard(task)
        if not task.cancelled():
            task.exception()  # told to the client, or nobody is left to be told

    async def _body(self, request: web.Request, route: Route) -> Any:
        if route.body is None:
            return None
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
            raise ProblemError(
                problems.UNSUPPORTED_MEDIA_TYPE, "A compressed body is not accepted."
            )
        raw = await self._read(request)
        if not raw and not any(field.required for field in msgspec.structs.fields(route.body)):
            return route.body()
        if raw and (request.content_type != _JSON or not _is_utf8(request)):
            raise ProblemError(
                problems.UNSUPPORTED_MEDIA_TYPE,
                f"The body's type is {request.headers.get(hdrs.CONTENT_TYPE, 'not given')!r:.100}; "
                f"send `Content-Type: {_JSON}`, in UTF-8.",
            )
        return body_of(raw, self._decoders[route.name])

    async def _read(self, request: web.Request) -> bytes:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                if hdrs.EXPECT in request.headers:
                    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    request.writer.output_size = 0  # that was no part of the answer
                return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise _too_large() from error
        except TimeoutError as error:
            raise ProblemError(
                problems.REQUEST_TIMEOUT,
                f"The body did not arrive within {self._limits.body_seconds:g} s.",
            ) from error
        except web.RequestPayloadError as error:
            raise ProblemError(
                Refusal.BAD_REQUEST.value, "The body is not well formed HTTP, or was cut off."
            ) from error

    # -- writing ---------------------------------------------------------------------------------

    async def _stream(self, request: web.Request, follow: Follow) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._streaming.add(task)
        try:
            return await streams.send(request, follow.items, self._limits)
        finally:
            self._streaming.discard(task)

    async def _write(self, request: web.Request, response: web.Response) -> web.Response:
        """Here, since the library waits for a slow reader for ever."""
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            log.info("api.client_too_slow", path=request.path)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # nobody is left to be answered
        return response


def _too_large() -> ProblemError:
    return ProblemError(problems.BODY_TOO_LARGE, f"A body may have {MAX_BODY_BYTES} bytes at most.")


def _refuse_stranger(route: Route, caller: Caller) -> None:
    if caller.reach(route.access) is not None:
        return
    held = ", ".join(sorted(caller.roles)) or "none"
    raise ProblemError(
        Refusal.FORBIDDEN.value,
        f"Your user (uid {caller.uid}) may not do this; its roles on this node: {held}. "
        "Roles are given under `[access]` in the node's configuration.",
    )


def _check_expectation(request: web.Request) -> None:
    expected = request.headers.get(hdrs.EXPECT)
    if expected is not None and expected.lower() != "100-continue":
        raise ProblemError(problems.EXPECTATION_FAILED, "Only `Expect: 100-continue` can be met.")


def _is_utf8(request: web.Request) -> bool:
    charset = request.charset
    return (charset.lower() if charset else None) in _UTF8


def _told(error: Exception, request: web.Request) -> problems.Told:
    return problems.of_error(error) or problems.of_mistake(
        error, method=request.method, path=request.path
    )


def _response_of(reply: Reply) -> web.Response:
    body = reply.body if isinstance(reply.body, bytes) else shown.encode(reply.body)
    headers: Mapping[str, str] = {
        **reply.headers,
        "Content-Type": reply.content_type,
        "Server": "executord",
        "Cache-Control": "no-store",
    }
    return web.Response(status=reply.status, body=body, headers=headers)

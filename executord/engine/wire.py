"""HTTP to the engine's socket, for replies that are streams or that the client library drops."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp

from executord.engine.address import Address
from executord.engine.streams import LineSplitter

T = TypeVar("T")

_PING_SECONDS = 2.0
_LONGEST_ERROR_BYTES = 64 * 1024


class StatusError(Exception):
    """The engine answered with an error's status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class StalledError(Exception):
    """The engine lives, but what it was asked for made no progress for too long."""


class Wire:
    """Two sessions: one for short calls, one for replies that may stay open for days.

    Neither keeps connections: one to a Unix socket costs 50 µs, and one that an engine's restart
    has closed costs a call that may not be repeated blindly.
    """

    def __init__(self, address: Address, *, deadline_seconds: float) -> None:
        self._address = address
        self.deadline_seconds = deadline_seconds
        self.timeout = aiohttp.ClientTimeout(total=None, sock_connect=deadline_seconds)
        self.calls = self._session()
        self._streams = self._session()

    def _session(self) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if self._address.socket:
            connector = aiohttp.UnixConnector(self._address.socket, force_close=True, limit=0)
        else:
            connector = aiohttp.TCPConnector(force_close=True, limit=0)
        return aiohttp.ClientSession(
            connector=connector, timeout=self.timeout, auto_decompress=False
        )

    async def close(self) -> None:
        await self.calls.close()
        await self._streams.close()

    async def answers(self) -> bool:
        """Whether the engine answers a ping within two seconds."""
        try:
            async with asyncio.timeout(min(_PING_SECONDS, self.deadline_seconds)):
                async with self.calls.get(self._url("_ping")) as response:
                    return response.status < 500
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    def _url(self, path: str) -> str:
        return f"{self._address.base_url}/{path}"

    async def post_json(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self.calls.post(self._url(path), json=body) as response:
            await _raise_for_status(response)
            return json.loads(await response.read())

    async def delete(self, path: str) -> None:
        async with self.calls.delete(self._url(path)) as response:
            await _raise_for_status(response)

    async def read(self, path: str, *, params: Mapping[str, str], limit_bytes: int) -> bytes:
        """The beginning of a reply."""
        async with self.calls.get(self._url(path), params=params) as response:
            await _raise_for_status(response)
            return await _read_at_most(response, limit_bytes)

    async def begin(
        self,
        path: str,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> aiohttp.ClientResponse:
        """A POST whose reply has begun; who asked for it has to close it."""
        response = await self._streams.post(
            self._url(path), params=params, headers=headers, data=data
        )
        try:
            await _raise_for_status(response)
        except BaseException:
            response.close()
            raise
        return response

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        stall_seconds: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """As `begin`; closed on leaving, which tells the engine to give up the work."""
        beginning = self.begin(path, params=params, headers=headers, data=data)
        response = await self.patiently(beginning, stall_seconds=stall_seconds)
        try:
            yield response
        finally:
            response.close()

    async def json_lines(
        self, response: aiohttp.ClientResponse, *, stall_seconds: float | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        splitter = LineSplitter()
        while True:
            data = await self.patiently(response.content.readany(), stall_seconds=stall_seconds)
            if not data:
                return
            for line in splitter.feed(data):
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise TypeError("a line of the reply is not an object")
                yield value

    async def patiently(
        self, work: Coroutine[Any, Any, T], *, stall_seconds: float | None = None
    ) -> T:
        """Wait as long as the engine answers pings; TimeoutError when it does not any more.

        StalledError after `stall_seconds` of silence although it does.
        """
        task = asyncio.ensure_future(work)
        silent_seconds = 0.0
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=self.deadline_seconds)
                if done:
                    return task.result()
                silent_seconds += self.deadline_seconds
                if stall_seconds is not None and silent_seconds >= stall_seconds:
                    raise StalledError
                if not await self.answers():
                    raise TimeoutError
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    body = await _read_at_most(response, _LONGEST_ERROR_BYTES)
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")
    raise StatusError(response.status, message)


async def _read_at_most(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    body = bytearray()
    while len(body) < limit_bytes:
        data = await response.content.readany()
        if not data:
            break
        body += data
    return bytes(body[:limit_bytes])

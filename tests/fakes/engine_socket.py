"""Sockets that stand in for an engine that misbehaves below the level of its API."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

Handler = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def engine_socket(path: Path, handler: Handler) -> AsyncIterator[str]:
    """A Unix socket whose answer to each request's head is up to `handler`; gives its URL."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await handler(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            serving.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(serve, path, backlog=1000)
    try:
        yield f"unix://{path}"
    finally:
        server.close()
        for task in tuple(serving):
            task.cancel()
        if serving:
            await asyncio.wait(serving)


async def never_answers(
    _head: bytes, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter
) -> None:
    await asyncio.sleep(3600)


def answers(body: str, *, status: str = "200 OK", promised: int | None = None) -> Handler:
    """Answers everything with this JSON; `promised` is what Content-Length says instead."""

    async def handler(
        _head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        data = body.encode()
        length = len(data) if promised is None else promised
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n".encode()
        )
        writer.write(data)
        await writer.drain()

    return handler


def streams(*pieces: bytes, ends: bool) -> Handler:
    """Answers with a chunked body, and either ends it properly or hangs up."""

    async def handler(
        _head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for piece in pieces:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if ends:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    return handler


class EngineProxy:
    """Forwards to a real engine; the replies to some requests get lost on the way back.

    A request whose first line contains one of `lost` is carried out, and its connection is cut
    before a byte of the answer.
    """

    def __init__(self, engine_socket_path: str) -> None:
        self._target = engine_socket_path
        self.lost: list[str] = []
        self.seen: list[str] = []

    @asynccontextmanager
    async def listen(self, path: Path) -> AsyncIterator[str]:
        async with engine_socket(path, self._forward) as url:
            yield url

    async def _forward(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request = head.split(b"\r\n", 1)[0].decode()
        self.seen.append(request)
        loses = next((mark for mark in self.lost if mark in request), None)
        upstream_reader, upstream = await asyncio.open_unix_connection(self._target)
        try:
            upstream.write(head)
            sending = asyncio.create_task(self._send_body(reader, upstream))
            try:
                if loses is not None:
                    self.lost.remove(loses)
                    await upstream_reader.readuntil(b"\r\n")
                    return
                while data := await upstream_reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        finally:
            upstream.close()

    @staticmethod
    async def _send_body(reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                upstream.write(data)
                await upstream.drain()

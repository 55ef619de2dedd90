"""HTTP/1.1 over the daemon's Unix socket, with nothing but the standard library.

Answers are JSON objects as the daemon sent them. Every wait has a deadline; an answer has a limit.
"""

import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from executord.cli.errors import (
    BadAnswerError,
    ConnectionLostError,
    ProblemError,
    UnreachableError,
)
from executord.cli.unreachable import explain

JsonObject: TypeAlias = dict[str, Any]
QueryValue: TypeAlias = str | int | float | bool | None

DEFAULT_SOCKET = "/run/executord/executord.sock"
MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_LINE_BYTES = 16 * 1024 * 1024
_READ_BYTES = 256 * 1024
_BACKLOG_FULL_PAUSE_SECONDS = 0.02


class QuietError(Exception):
    """A stream has said nothing for a while. The line may be dead: ask again from where it was."""


class Client:
    """Raises UnreachableError, ConnectionLostError, ProblemError or BadAnswerError only."""

    def __init__(
        self, socket_path: str = DEFAULT_SOCKET, *, deadline_seconds: float = 30.0
    ) -> None:
        self.socket_path = socket_path
        self.deadline_seconds = deadline_seconds

    def get(
        self, path: str, *, deadline_seconds: float | None = None, **query: QueryValue
    ) -> JsonObject:
        return self._call("GET", path, query=query, deadline_seconds=deadline_seconds)

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        deadline_seconds: float | None = None,
        **query: QueryValue,
    ) -> JsonObject:
        return self._call("POST", path, query=query, body=body, deadline_seconds=deadline_seconds)

    def stream(
        self,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        quiet_seconds: float = 60.0,
        **query: QueryValue,
    ) -> Iterator[JsonObject]:
        """The objects of an NDJSON stream as they come; ends where the daemon ends it. With a
        `body` it is asked for by POST.

        Raises QuietError after `quiet_seconds` without a byte, ConnectionLostError when the stream
        breaks off.
        """
        headers = {"Accept": "application/x-ndjson"}
        method, content = "GET", None
        if body is not None:
            method, content = "POST", json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        target = _target(path, query)
        with self._asked(method, target, headers, content, self.deadline_seconds) as got:
            connection, response = got
            if connection.sock is not None:
                connection.sock.settimeout(quiet_seconds)
            for line in _lines(response):
                yield _object(line)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, QueryValue],
        body: Mapping[str, Any] | None = None,
        deadline_seconds: float | None = None,
    ) -> JsonObject:
        deadline = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        headers = {"Accept": "application/json"}
        content = None
        if method == "POST":
            content = json.dumps({} if body is None else body).encode()
            headers["Content-Type"] = "application/json"
        with self._asked(method, _target(path, query), headers, content, deadline) as got:
            text = _whole(*got, ends_at=time.monotonic() + deadline)
        return _object(text) if text else {}

    @contextmanager
    def _asked(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline_seconds: float,
    ) -> Iterator[tuple["_UnixConnection", http.client.HTTPResponse]]:
        """A response with a good status, and its connection, which is closed in the end."""
        connection = _UnixConnection(self.socket_path, deadline_seconds)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise explain(self.socket_path, error, deadline_seconds) from error
            try:
                connection.request(method, target, body=body, headers=dict(headers))
                response = connection.getresponse()
                if response.status >= http.client.BAD_REQUEST:
                    text = _whole(connection, response, ends_at=time.monotonic() + deadline_seconds)
                    raise _problem(response, text)
                yield connection, response
            except TimeoutError as error:
                raise UnreachableError(
                    f"The daemon at {self.socket_path} did not answer within "
                    f"{deadline_seconds:g} s.",
                    advice="It may be busy or stuck: see `journalctl -u executord`.",
                ) from error
            except (OSError, http.client.HTTPException) as error:
                raise _lost(self.socket_path, error) from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        gives_up_at = time.monotonic() + (self.timeout or 0.0)
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            try:
                self.sock.connect(self._path)
            except BlockingIOError:  # the daemon's queue of new connections is full
                self.sock.close()
                if time.monotonic() > gives_up_at:
                    raise
                time.sleep(_BACKLOG_FULL_PAUSE_SECONDS)
            else:
                return


def _target(path: str, query: Mapping[str, QueryValue]) -> str:
    given = {key: _query_text(value) for key, value in query.items() if value is not None}
    return f"{path}?{urllib.parse.urlencode(given)}" if given else path


def _query_text(value: QueryValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def quoted(segment: str) -> str:
    """`segment` as one part of a path, whatever a person typed."""
    return urllib.parse.quote(segment, safe="")


def _whole(
    connection: _UnixConnection, response: http.client.HTTPResponse, *, ends_at: float
) -> bytes:
    pieces, size = [], 0
    while True:
        if connection.sock is not None:
            connection.sock.settimeout(max(ends_at - time.monotonic(), 0.001))
        piece = response.read1(_READ_BYTES)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            raise BadAnswerError(f"The daemon's answer is longer than {MAX_ANSWER_BYTES} bytes.")
    if response.length:
        raise http.client.IncompleteRead(b"".join(pieces), response.length)
    return b"".join(pieces)


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Splits at a line feed alone: a console's text may hold any other kind of line end."""
    rest = b""
    while True:
        try:
            piece = response.read1(_READ_BYTES)
        except TimeoutError as error:
            raise QuietError from error
        if not piece:
            break
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line for line in lines if line.strip())
        if len(rest) > MAX_LINE_BYTES:
            raise BadAnswerError(f"The daemon sent a line longer than {MAX_LINE_BYTES} bytes.")
    if rest.strip():
        raise http.client.IncompleteRead(rest)


def _object(text: bytes) -> JsonObject:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadAnswerError(
            "The daemon's answer is not JSON.",
            advice="Check with --socket that it is executord's socket.",
        ) from error
    if not isinstance(value, dict):
        raise BadAnswerError("The daemon's answer is not a JSON object.")
    return value


def _problem(response: http.client.HTTPResponse, text: bytes) -> ProblemError:
    problem: JsonObject = {}
    if "json" in (response.getheader("Content-Type") or ""):
        problem = _object(text)
    retry = response.getheader("Retry-After") or ""
    if retry.isdigit():
        problem.setdefault("retry_after_seconds", int(retry))
    problem.setdefault("title", response.reason)
    return ProblemError(response.status, problem)


def _lost(socket_path: str, error: Exception) -> ConnectionLostError:
    what = str(error) or type(error).__name__
    return ConnectionLostError(
        f"The connection to the daemon at {socket_path} broke off: {what}.",
        advice="The daemon may be restarting; `executorctl node` tells whether it is back.",
    )

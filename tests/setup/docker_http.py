"""The engine's HTTP API over its Unix socket, with the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import IO

PING_SECONDS = 3.0
CALL_SECONDS = 30.0
LOAD_SECONDS = 600.0


class EngineError(Exception):
    """The engine said no; `status` is the HTTP status, the text its own message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} (status {status})")
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class EngineHttp:
    """Calls to one engine; each opens a connection, answers whole, and has a time-out."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    def answers(self) -> bool:
        try:
            status, body = self._call("GET", "/_ping", None, PING_SECONDS)
        except (OSError, http.client.HTTPException):
            return False
        return status == http.HTTPStatus.OK and body.strip() == b"OK"

    def version(self) -> str:
        answer = self.get("/version")
        return str(answer.get("Version", "?")) if isinstance(answer, dict) else "?"

    def get(self, path: str) -> Any:
        return json.loads(self._ask("GET", path, None, CALL_SECONDS))

    def delete(self, path: str) -> None:
        self._ask("DELETE", path, None, CALL_SECONDS)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> bytes:
        payload = None if body is None else json.dumps(body).encode()
        return self._ask("POST", path, payload, CALL_SECONDS)

    def post_stream(
        self,
        path: str,
        query: Sequence[tuple[str, str]],
        body: IO[bytes] | bytes | None = None,
        *,
        timeout_seconds: float = LOAD_SECONDS,
    ) -> list[dict[str, Any]]:
        """
        POST where the engine reports progress as JSON lines; give the lines.

        A line with an error, which the engine sends under status 200, is raised.
        """
        text = self._ask(
            "POST", f"{path}?{urlencode(query, quote_via=quote)}", body, timeout_seconds
        )
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        for line in lines:
            if "error" in line:
                raise EngineError(http.HTTPStatus.OK, str(line["error"]))
        return lines

    def _ask(
        self, method: str, path: str, body: IO[bytes] | bytes | None, timeout_seconds: float
    ) -> bytes:
        try:
            status, answer = self._call(method, path, body, timeout_seconds)
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(
                0, f"{method} {path.partition('?')[0]}: no answer, {error!r}"
            ) from error
        if status >= http.HTTPStatus.BAD_REQUEST:
            raise EngineError(status, _message(answer))
        return answer

    def _call(
        self, method: str, path: str, body: IO[bytes] | bytes | None, timeout_seconds: float
    ) -> tuple[int, bytes]:
        connection = _UnixConnection(self.socket_path, timeout_seconds)
        kind = "application/json" if isinstance(body, bytes) else "application/x-tar"
        try:
            with contextlib.suppress(BrokenPipeError):  # it refuses, and its answer says why
                connection.request(method, path, body=body, headers={"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _message(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, KeyError, TypeError):
        return answer.decode("utf-8", "replace").strip() or "no message"

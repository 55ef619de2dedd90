"""A daemon to try the client on: a real HTTP server on a Unix socket, with runs that obey a script.

It keeps the promises of the contract that the client leans on: idempotent submission, a console by
byte offset, events by sequence number, streams that can be cut and resumed.
"""

import base64
import json
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.daemon_runs import FakeRun, Json, succeeds

TERMINAL = ("Succeeded", "Stopped", "Failed", "Error")
WAIT_SECONDS = 10.0


class FakeDaemon:
    """`script` drives each new run in a thread of its own."""

    def __init__(self, path: Path, script: Callable[[FakeRun], None] = succeeds) -> None:
        self.path = path
        self.script = script
        self.changed = threading.Condition(threading.RLock())
        self.runs: dict[str, FakeRun] = {}
        self.events: list[Json] = []
        self.stops: list[Json] = []
        self.requests: list[str] = []
        self.fixed: dict[str, tuple[int, Json]] = {}
        self.replies_to_lose = 0
        self.stall_seconds = 0.0
        self._streams: set[socket.socket] = set()
        self._ending_streams = False
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._ending_streams = False
        self._server = _Server(str(self.path), self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self, *, properly: bool = False) -> None:
        """As a kill: connections break off. `properly` ends streams as a shutdown does."""
        server, self._server = self._server, None
        if server is None:
            return
        self.path.unlink(missing_ok=True)
        server.shutdown()
        server.server_close()
        with self.changed:
            self._ending_streams = True
            self.changed.notify_all()
        if properly:
            gives_up_at = time.monotonic() + WAIT_SECONDS
            while self._streams and time.monotonic() < gives_up_at:
                time.sleep(0.01)
        self.cut_streams()

    def cut_streams(self) -> None:
        """Break every open stream off in the middle."""
        for stream in list(self._streams):
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def wait_for(self, what: Callable[[], bool]) -> None:
        with self.changed:
            if not self.changed.wait_for(what, WAIT_SECONDS):
                raise AssertionError("it did not happen in time")

    def add(self, **asked: Any) -> FakeRun:
        """A run that is here already, and that no script drives."""
        run = FakeRun(self, {"id": f"r-{len(self.runs) + 1}", "command": ["true"], **asked})
        self.runs[run.id] = run
        run.go("Queued")
        return run

    # -- what the handler asks ---------------------------------------------------------------------

    def submit(self, asked: Json) -> tuple[int, Json]:
        run = self.runs.get(str(asked.get("id")))
        if run is not None:
            if run.asked != asked:
                return problem(409, "id_conflict", f"Another run has the id {run.id}.")
            run.submissions += 1
            return 200, run.answer(timeline=True)
        if asked.get("tier") == "none":
            return problem(422, "unknown_tier", "There is no tier 'none'.", pointer="/tier")
        run = self.add(**{"id": f"r-{len(self.runs) + 1}", **asked})
        threading.Thread(target=self.script, args=(run,), daemon=True).start()
        return 201, run.answer(timeline=True)

    def stop_run(self, run: FakeRun, order: Json) -> tuple[int, Json]:
        if run.state in TERMINAL:
            return problem(409, "run_over", f"The run {run.id} has ended.")
        self.stops.append({"run": run.id, **order})
        run.stopped.set()
        return 202, run.answer(timeline=True)

    def console_from(self, run: FakeRun, since: int) -> list[Json]:
        """Records from the one that holds byte `since`; a client may get some of it twice."""
        pieces = [p for p in run.console if p.offset + len(p.data) + p.lost_bytes > since]
        return [piece.answer() for piece in pieces]

    def follow_console(self, run: FakeRun, since: int) -> Iterator[Json]:
        sent = len(run.console) - len(self.console_from(run, since))
        while True:
            with self.changed:
                while len(run.console) == sent and not run.sealed and not self._ending_streams:
                    self.changed.wait(WAIT_SECONDS)
                fresh = run.console[sent:]
                over = (run.sealed and not fresh) or self._ending_streams
            yield from (piece.answer() for piece in fresh)
            sent += len(fresh)
            if over:
                return

    def follow_events(self, after: int) -> Iterator[Json]:
        while not self._ending_streams:
            with self.changed:
                while len(self.events) == after and not self._ending_streams:
                    self.changed.wait(WAIT_SECONDS)
                fresh = self.events[after:]
            yield from fresh
            after += len(fresh)


def problem(status: int, code: str, detail: str, **more: Any) -> tuple[int, Json]:
    return status, {
        "type": f"urn:executord:problem:{code}",
        "title": code.replace("_", " "),
        "status": status,
        "detail": detail,
        "code": code,
        **more,
    }


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, daemon: FakeDaemon) -> None:
        self.fake = daemon
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's own name
        """Tests read the list of requests instead."""

    def do_GET(self) -> None:
        self._handle({})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._handle(json.loads(self.rfile.read(length) or b"{}"))

    def _handle(self, body: Json) -> None:
        fake = self.server.fake
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        fake.requests.append(f"{self.command} {self.path}")
        time.sleep(fake.stall_seconds)
        fixed = fake.fixed.get(f"{self.command} {url.path}")
        if fixed is not None:
            self._answer(*fixed)
            return
        if url.path == "/v1/events" and query.get("follow") == "true":
            self._stream(fake.follow_events(int(query.get("after", 0))))
            return
        found = re.fullmatch(r"/v1/runs/([^/]+)/logs", url.path)
        if found and query.get("follow") == "true" and unquote(found[1]) in fake.runs:
            run = fake.runs[unquote(found[1])]
            self._stream(fake.follow_console(run, int(query.get("since", 0))))
            return
        status, answer = self._routed(url.path, query, body)
        if fake.replies_to_lose and self.command == "POST":
            fake.replies_to_lose -= 1
            self.close_connection = True
            return
        self._answer(status, answer)

    def _routed(self, path: str, query: dict[str, str], body: Json) -> tuple[int, Json]:
        fake = self.server.fake
        if path == "/v1/runs":
            return fake.submit(body) if self.command == "POST" else self._listed(query)
        if path == "/v1/events":
            after = int(query.get("after", 0))
            fresh = fake.events[after : after + 2]
            return 200, {"events": fresh, "next_after": after + len(fresh)}
        if path == "/healthz":
            return 200, {"status": "ok"}
        if path == "/readyz":
            return 200, {"ready": True}
        found = re.fullmatch(r"/v1/runs/([^/]+)(?:/(\w+))?", path)
        if not found:
            return problem(404, "not_found", f"There is nothing at {path}.")
        run = fake.runs.get(unquote(found[1]))
        if run is None:
            return problem(404, "unknown_run", f"There is no run {unquote(found[1])}.")
        return self._of_run(run, found[2] or "", query, body)

    def _listed(self, query: dict[str, str]) -> tuple[int, Json]:
        runs = [
            run.answer(timeline=False)
            for run in reversed(self.server.fake.runs.values())
            if query.get("state") in (None, run.state)
            and query.get("project") in (None, run.asked.get("project"))
        ]
        start, count = int(query.get("cursor", 0)), min(int(query.get("limit", 100)), 2)
        left = start + count < len(runs)
        page = runs[start : start + count]
        return 200, {"runs": page, "next_cursor": str(start + count) if left else None}

    def _of_run(
        self, run: FakeRun, what: str, query: dict[str, str], body: Json
    ) -> tuple[int, Json]:
        fake = self.server.fake
        if what == "":
            return 200, run.answer(timeline=True)
        if what == "stop":
            return fake.stop_run(run, body)
        if what == "logs":
            records = fake.console_from(run, int(query.get("since", 0)))
            page = [r for r in records[:2] if query.get("stream") in (None, r["stream"], "gap")]
            last = records[:2][-1] if records else None
            end = int(query.get("since", 0))
            if last:
                size = len(last.get("data", "").encode()) or len(
                    base64.b64decode(last.get("data_base64", ""))
                )
                end = last["offset"] + size + last["lost_bytes"]
            return 200, {"records": page, "next_offset": end, "more": len(records) > 2}
        if what == "files":
            return 200, {"run_id": run.id, "changes": run.facts.get("changes", [])}
        if what == "usage":
            return 200, {"samples": [], "summary": None, "next_since": 0.0}
        return problem(501, "not_implemented", "This version has nothing behind this path.")

    def _answer(self, status: int, answer: Json) -> None:
        text = json.dumps(answer).encode()
        kind = "application/problem+json" if status >= 400 else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        if "retry_after_seconds" in answer:
            self.send_header("Retry-After", str(answer["retry_after_seconds"]))
        self.end_headers()
        self.wfile.write(text)

    def _stream(self, items: Iterator[Json]) -> None:
        streams = self.server.fake._streams
        streams.add(self.connection)
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for item in items:
                line = json.dumps(item, ensure_ascii=False).encode() + b"\n"
                # a chunk that ends in the middle of a line, as a network may deliver it
                for part in (line[: len(line) // 2], line[len(line) // 2 :]):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        finally:
            self.close_connection = True
            streams.discard(self.connection)

"""A real daemon in a directory of its own, started and killed as a process, spoken to by socket."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.setup.docker_http import EngineHttp

IMAGE = "executord-test/busybox:1"
TERMINAL = ("Succeeded", "Stopped", "Failed", "Error")

CONFIG = """
[node]
name = "test-node"
state_dir = "{root}/state"

[api]
socket = "{root}/s/d.sock"

[engine]
url = "{engine}"

[store]
url = "file://{root}/store"

[runs]
default_image = "{image}"
stop_grace_seconds = 2
max_queue = 100000
allowed_mounts = ["{root}/data"]

[tiers.small]
cpus = 0.1
memory = "64MiB"
max_runs = 8
{extra}
"""


def engine() -> EngineHttp:
    """The engine that the tests use, asked directly."""
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    return EngineHttp(Path(url.removeprefix("unix://")))


class Reply:
    """An answer of the daemon: `status`, `headers`, and `json` where the body is some."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Daemon:
    """`root` is short, since a socket's path is; everything of the daemon lies below it."""

    def __init__(self, *, extra: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="xd-", dir="/tmp"))
        self.root.chmod(0o755)
        self.socket = self.root / "s" / "d.sock"
        self.config = self.root / "executord.toml"
        self.log = self.root / "daemon.log"
        (self.root / "data").mkdir()
        (self.root / "store").mkdir()
        self.config.write_text(self._text(extra))
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, "EXECUTORD_LOG": "json", **(environment or {})}

    def _text(self, extra: str) -> str:
        return CONFIG.format(
            root=self.root, image=IMAGE, engine=f"unix://{engine().socket_path}", extra=extra
        )

    # -- life --------------------------------------------------------------------------------------

    def start(self, *, within_seconds: float = 30.0) -> "Daemon":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "executord", "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        deadline = time.monotonic() + within_seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/readyz").status == 200:
                    return self
            time.sleep(0.02)
        raise AssertionError(f"the daemon was not ready in time: {self.tail()}")

    def kill(self) -> None:
        """As the kernel would: no chance to say anything."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def terminate(self, *, within_seconds: float = 20.0) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_seconds)

    def close(self) -> None:
        """End every run, the daemon, and all it left."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(Exception):
                self.stop_all()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.terminate()
            if self.process.poll() is None:
                self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def stop_all(self) -> None:
        live = [run["id"] for run in self.runs() if run["state"] not in TERMINAL]
        for run_id in live:
            self.post(f"/v1/runs/{run_id}/stop", {"results": "discard", "grace_seconds": 0})
        for run_id in live:
            self.wait(run_id)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    # -- requests ----------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 15.0,
    ) -> Reply:
        connection = UnixConnection(self.socket, timeout)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, value: object) -> Reply:
        body = json.dumps(value).encode()
        return self.request("POST", path, body, headers={"Content-Type": "application/json"})

    def submit(self, *command: str, **fields: object) -> str:
        reply = self.post("/v1/runs", {"command": list(command), **fields})
        assert reply.status in (200, 201), reply.body
        return str(reply.json["id"])

    def sh(self, script: str, **fields: object) -> str:
        return self.submit("/bin/sh", "-c", script, **fields)

    def run(self, run_id: str) -> Any:
        reply = self.get(f"/v1/runs/{run_id}")
        assert reply.status == 200, reply.body
        return reply.json

    def runs(self) -> list[Any]:
        found: list[Any] = []
        cursor = ""
        while True:
            page = self.get(f"/v1/runs?limit=200{cursor}").json
            found += page["runs"]
            if not page.get("next_cursor"):
                return found
            cursor = f"&cursor={page['next_cursor']}"

    def wait(self, run_id: str, *, within_seconds: float = 60.0) -> Any:
        return self.wait_for(run_id, *TERMINAL, within_seconds=within_seconds)

    def wait_for(self, run_id: str, *states: str, within_seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + within_seconds
        while time.monotonic() < deadline:
            run = self.run(run_id)
            if run["state"] in states:
                return run
            if run["state"] in TERMINAL:
                raise AssertionError(f"{run_id} ended: {run['state']} {run['explanation']}")
            time.sleep(0.03)
        raise AssertionError(f"{run_id} is {run['state']}, not {states}: {self.tail()}")

    def console(self, run_id: str, *, stream: str = "") -> str:
        wanted = f"&stream={stream}" if stream else ""
        text, since = "", 0
        while True:
            page = self.get(f"/v1/runs/{run_id}/logs?since={since}{wanted}").json
            if not page["records"]:
                return text
            text += "".join(record.get("data", "") for record in page["records"])
            since = page["next_offset"]

    def events(self, after: int = 0) -> list[Any]:
        found: list[Any] = []
        while True:
            page = self.get(f"/v1/events?after={after}").json
            if not page["events"]:
                return found
            found += page["events"]
            after = page["next_after"]


@contextlib.contextmanager
def running_daemon(
    *, extra: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    daemon = Daemon(extra=extra, environment=environment)
    try:
        yield daemon.start()
    finally:
        daemon.close()

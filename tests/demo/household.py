"""The demo's daemon: started in a folder of its own, ended and swept away whatever happens."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.setup.docker_http import EngineError, EngineHttp

IMAGE = "executord-test/python:3.11"
READY_SECONDS = 30.0
LEAVE_SECONDS = 20.0
COMMAND_SECONDS = 60.0
LOG_TAIL_LINES = 15
LOG_LINE_CHARACTERS = 1000

CONFIG = """\
[node]
name = "demo-node"
state_dir = "{root}/state"

[api]
socket = "{root}/x.sock"

[engine]
url = "{engine}"

[store]
url = "file://{root}/store"

[files]
min_free = "0B"

[runs]
default_image = "{image}"

[tiers.small]
cpus = 1
memory = "256MiB"
max_runs = 2

[tiers.tiny]
cpus = 0.25
memory = "64MiB"
max_runs = 2
"""


class UnexpectedError(Exception):
    """The demo did not go as it should; the text is a sentence that says what did not."""


class Household:
    """A daemon with everything it needs below `root`, which is short since a socket is in it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="xdemo-", dir="/tmp"))
        self.root.chmod(0o755)
        (self.root / "store").mkdir()
        self.socket = self.root / "x.sock"
        self.config = self.root / "executord.toml"
        self.log = self.root / "daemon.log"
        url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        self.config.write_text(CONFIG.format(root=self.root, engine=url, image=IMAGE))
        self._engine = EngineHttp(Path(url.removeprefix("unix://")))
        self._daemon: subprocess.Popen[bytes] | None = None

    # -- the daemon --------------------------------------------------------------------------------

    def start(self) -> None:
        if not self._engine.answers():
            raise UnexpectedError(
                f"no engine answers at {self._engine.socket_path}; `make demo` starts one"
            )
        with self.log.open("wb") as log:
            self._daemon = subprocess.Popen(
                [_program("executord"), "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._daemon.poll() is not None:
                raise UnexpectedError(
                    f"the daemon ended with {self._daemon.returncode} instead of serving:\n"
                    f"{self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise UnexpectedError(
                    f"the daemon does not serve after {READY_SECONDS:g} s:\n{self.log_tail()}"
                )
            time.sleep(0.05)

    def leave(self) -> int:
        """End the daemon by SIGTERM and give its exit status."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGTERM)
        try:
            return self._daemon.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            raise UnexpectedError(
                f"the daemon is still there {LEAVE_SECONDS:g} s after SIGTERM:\n{self.log_tail()}"
            ) from None

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(line[:LOG_LINE_CHARACTERS] for line in lines)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            try:
                client.connect(str(self.socket))
                client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return client.recv(64).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

    # -- its client --------------------------------------------------------------------------------

    def type(self, command: str, *, exits_with: int = 0) -> None:
        """Echo the command and run it as a person would, in `root`, on this very terminal."""
        print(f"\n\033[1m$ {command}\033[0m" if sys.stdout.isatty() else f"\n$ {command}")
        sys.stdout.flush()
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.root,
            env=self._environment(),
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != exits_with:
            raise UnexpectedError(
                f"`{command}` ended with {done.returncode}, and {exits_with} was expected"
            )

    def ask(self, *words: str) -> Any:
        """What `executorctl --json` answers, for the demo's own checks."""
        return json.loads(self._output_of("--json", *words))

    def output_of(self, run_id: str) -> bytes:
        """All that the run has written so far."""
        return self._output_of("logs", run_id)

    def _output_of(self, *words: str) -> bytes:
        done = subprocess.run(
            [_program("executorctl"), *words],
            cwd=self.root,
            env=self._environment(),
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise UnexpectedError(
                f"`executorctl {shlex.join(words)}` ended with {done.returncode}:"
                f" {done.stderr.decode(errors='replace').strip()}"
            )
        return done.stdout

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "PATH": path, "EXECUTORD_SOCKET": str(self.socket)}

    # -- afterwards --------------------------------------------------------------------------------

    def sweep(self) -> None:
        """End what still lives and remove every trace; safe to call at any moment."""
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.terminate()
            try:
                self._daemon.wait(LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        with contextlib.suppress(EngineError, OSError):
            self._remove_from_engine()
        shutil.rmtree(self.root, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Names of this daemon's volumes: each of them lies over a directory below `root`."""
        volumes = self._engine.get(f"/volumes?filters={_by_label('executord.run')}")["Volumes"]
        return [
            volume["Name"]
            for volume in volumes or ()
            if f"{self.root}/" in (volume.get("Options") or {}).get("o", "")
        ]

    def _remove_from_engine(self) -> None:
        for name in self.leftovers():
            users = self._engine.get(f"/containers/json?all=1&filters={_filter('volume', name)}")
            for container in users:
                self._engine.delete(f"/containers/{container['Id']}?force=1")
            self._engine.delete(f"/volumes/{quote(name, safe='')}")


def _program(name: str) -> str:
    """The installed program that belongs to this very Python."""
    program = Path(sys.executable).parent / name
    if not program.exists():
        raise UnexpectedError(f"{program} is not there; `make venv` installs it")
    return str(program)


def _by_label(label: str) -> str:
    return _filter("label", label)


def _filter(kind: str, value: str) -> str:
    return quote(json.dumps({kind: [value]}))

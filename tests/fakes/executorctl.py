"""Running `executorctl` as people do: as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "executord.cli")
PATIENCE_SECONDS = 60.0


def environment(socket: Path | None, **more: str) -> dict[str, str]:
    """A plain environment: no colours asked for, times in UTC, nothing of the caller's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    found = {**kept, "PYTHONPATH": str(ROOT), "TZ": "UTC", "PYTHONUTF8": "1", **more}
    if socket is not None:
        found["EXECUTORD_SOCKET"] = str(socket)
    return found


def ctl(
    *arguments: str,
    socket: Path | None = None,
    stdin: bytes = b"",
    cwd: Path | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(socket, **variables),
        cwd=cwd,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


class Live:
    """An `executorctl` that is still at it. Its output is read as it comes."""

    def __init__(self, *arguments: str, socket: Path, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(socket, **variables),
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._streams = {
            "out": self.process.stdout.fileno(),
            "err": self.process.stderr.fileno(),
        }
        self.seen = {"out": b"", "err": b""}
        for fd in self._streams.values():
            os.set_blocking(fd, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        for name, fd in self._streams.items():
            try:
                while piece := os.read(fd, 65536):
                    self.seen[name] += piece
            except BlockingIOError:
                continue

    def until(self, stream: str, text: bytes) -> None:
        """Returns when `text` was seen on "out" or "err"."""
        gives_up_at = time.monotonic() + PATIENCE_SECONDS
        while text not in self.seen[stream]:
            self._read()
            if time.monotonic() > gives_up_at:
                raise AssertionError(f"{text!r} never came; seen: {self.seen}")
            time.sleep(0.01)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """The exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._read()
        return code

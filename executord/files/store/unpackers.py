"""The processes that unpack, and those who wait for them."""

import contextlib
import marshal
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from executord.files.faults import CancelledWorkError
from executord.files.store import unpack
from executord.files.system.idle_work import helped_by

_PROGRAM = Path(unpack.__file__)
_LENGTH = struct.Struct("<I")
_MOST_REPLY_BYTES = 64 << 20
_STALL_SECONDS = 120.0
_LOOK_SECONDS = 0.2
_MOST = 4


class PackSpan(NamedTuple):
    """A pack's file, and the bytes of it that are needed."""

    path: str
    start: int
    length: int


class UnpackerError(Exception):
    """It cannot be started, has ended, or is silent: the work is to be done in another way."""


class Unpackers:
    """At most one a core. `unpack` blocks, and may be called from several threads."""

    def __init__(self, *, stall_seconds: float = _STALL_SECONDS) -> None:
        self.number = max(1, min(_MOST, len(os.sched_getaffinity(0))))
        self._stall_seconds = stall_seconds
        self._idle: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._lock = threading.Lock()

    def unpack(
        self,
        span: PackSpan,
        folder: Path,
        *,
        owner: tuple[int, int],
        objects: unpack.Objects,
        cancelled: threading.Event,
    ) -> Sequence[int]:
        """Write objects of a pack's span into a folder; gives the inodes, 0 where the bytes are
        wrong. Raises OSError (writing), UnpackerError (all else), CancelledWorkError.
        """
        uid, gid = (-1, -1) if owner == (os.geteuid(), os.getegid()) else owner
        task = marshal.dumps((*span, str(folder), uid, gid, objects))
        process = self._take()
        kept = False
        try:
            with helped_by(process.pid):
                deadline = time.monotonic() + self._stall_seconds
                _send(process, task, deadline, cancelled)
                inodes, number, at = self._reply(process, deadline, cancelled)
            kept = True
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise UnpackerError(str(error)) from error
        finally:
            if kept:
                self._give_back(process)
            else:
                _end(process)
        if number and at == span.path:
            raise UnpackerError(os.strerror(number))
        if number:
            raise OSError(number, os.strerror(number), at)
        return inodes

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            _end(process)

    def _take(self) -> "subprocess.Popen[bytes]":
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return _start()
            if process.poll() is None:
                return process
            _end(process)

    def _give_back(self, process: "subprocess.Popen[bytes]") -> None:
        with self._lock:
            if not self._closed and len(self._idle) < self.number:
                self._idle.append(process)
                return
        _end(process)

    def _reply(
        self, process: "subprocess.Popen[bytes]", deadline: float, cancelled: threading.Event
    ) -> tuple[Sequence[int], int, str]:
        assert process.stdout is not None
        fd = process.stdout.fileno()
        data = b""
        wanted = _LENGTH.size
        while len(data) < wanted:
            _go_on(deadline, cancelled)
            if not select.select([fd], [], [], _LOOK_SECONDS)[0]:
                continue
            piece = os.read(fd, min(1 << 20, wanted - len(data)))
            if not piece:
                raise UnpackerError("it has ended")
            data += piece
            if wanted == _LENGTH.size == len(data):
                wanted += _LENGTH.unpack(data)[0]
                if wanted > _MOST_REPLY_BYTES:
                    raise UnpackerError("it says too much")
        inodes, number, at = marshal.loads(data[_LENGTH.size :])  # noqa: S302 - our own child
        return inodes, number, at


def _start() -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
    except OSError as error:
        raise UnpackerError(str(error)) from error


def _send(
    process: "subprocess.Popen[bytes]", task: bytes, deadline: float, cancelled: threading.Event
) -> None:
    assert process.stdin is not None
    fd = process.stdin.fileno()
    os.set_blocking(fd, False)
    data = memoryview(_LENGTH.pack(len(task)) + task)
    while data:
        _go_on(deadline, cancelled)
        if select.select([], [fd], [], _LOOK_SECONDS)[1]:
            data = data[os.write(fd, data) :]


def _go_on(deadline: float, cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise CancelledWorkError
    if time.monotonic() > deadline:
        raise UnpackerError("it is silent")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """One that hangs in the kernel is left to whoever adopts it."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)

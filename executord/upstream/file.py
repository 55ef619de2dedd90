"""A sink that appends events to a file, one JSON object a line."""

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from executord.core.cloudevents import CloudEvent
from executord.upstream.sinks import Again, Delivered, Verdict

_BLOCK_BYTES = 64 * 1024


class FileSink:
    """Each batch is one append and one fdatasync; a reader never sees a batch acknowledged that a
    power cut takes back. A part of a line that a crash left at the end is cut off. After a crash
    between the append and the journal's mark a batch is there twice. When the file was moved away
    (log rotation), a new one is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        # A thread goes on when its await is cancelled: the next one waits for it.
        self._lock = threading.Lock()

    async def deliver(self, events: Sequence[CloudEvent]) -> Verdict:
        return await asyncio.to_thread(self._append, msgspec.json.Encoder().encode_lines(events))

    async def close(self) -> None:
        await asyncio.to_thread(self._close_locked)

    def _append(self, lines: bytes) -> Verdict:
        with self._lock:
            try:
                fd = self._current()
                end = os.fstat(fd).st_size
            except OSError as error:
                self._close()
                return Again(why=f"{self._path} cannot be opened: {error.strerror}.")
            try:
                _write_all(fd, lines)
                os.fdatasync(fd)
            except OSError as error:
                # What was not written for certain is taken back, and written anew next time: the
                # kernel forgets pages whose write-back failed.
                self._take_back(fd, end)
                return Again(why=f"{self._path} cannot be written: {error.strerror}.")
            return Delivered()

    def _take_back(self, fd: int, end: int) -> None:
        with suppress(OSError):
            os.ftruncate(fd, end)
        self._close()

    def _current(self) -> int:
        """The open file, as long as the path still leads to it."""
        if self._fd is not None and not self._is_still_there(self._fd):
            self._close()
        if self._fd is None:
            self._fd = self._open()
        return self._fd

    def _is_still_there(self, fd: int) -> bool:
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(fd))

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o640)
        try:
            _check_regular(fd)
            _cut_partial_line(fd)
            _sync_directory(self._path.parent)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _close_locked(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def _check_regular(fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _cut_partial_line(fd: int) -> None:
    size = end = os.fstat(fd).st_size
    while end > 0:
        begin = max(0, end - _BLOCK_BYTES)
        newline = os.pread(fd, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        os.ftruncate(fd, end)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

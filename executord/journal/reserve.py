"""Disk space that is set aside, so that ends of runs can be written when the disk is full."""

import os
from pathlib import Path

import structlog

from executord.ports import Clock

log = structlog.get_logger(__name__)

_MARGIN_BYTES = 4 * 1024 * 1024
_RETRY_SECONDS = 1.0


class Reserve:
    """A file of real blocks beside the journal. Used by the writer thread alone."""

    def __init__(self, path: Path, size_bytes: int, clock: Clock) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._clock = clock
        self._whole = False
        self._next_try = float("-inf")

    def is_whole(self) -> bool:
        """Whether the space is set aside. Where it is not, it is tried again once a second."""
        if self._whole:
            return True
        now = self._clock.monotonic()
        if now >= self._next_try:
            self._next_try = now + _RETRY_SECONDS
            self._whole = self._make()
        return self._whole

    def release(self) -> bool:
        """Give the space back to the disk. False where there was none to give."""
        if not self._whole:
            return False
        self._whole = False
        self._next_try = self._clock.monotonic() + _RETRY_SECONDS
        try:
            self._path.unlink(missing_ok=True)
            _sync_directory(self._path.parent)
        except OSError as error:
            log.warning("journal.reserve_stuck", path=str(self._path), error=str(error))
            return False
        log.warning("journal.reserve_released", bytes=self._size_bytes)
        return True

    def _make(self) -> bool:
        """More than the reserve has to fit, so that it does not come and go at the brink."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, 0o600)
        except OSError:
            return False
        try:
            if os.fstat(fd).st_blocks * 512 >= self._size_bytes:
                return True
            os.posix_fallocate(fd, 0, self._size_bytes + _MARGIN_BYTES)
            os.ftruncate(fd, self._size_bytes)
            os.fsync(fd)
        except OSError:
            self._path.unlink(missing_ok=True)
            return False
        finally:
            os.close(fd)
        log.info("journal.reserve_made", bytes=self._size_bytes)
        return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

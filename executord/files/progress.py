"""Counting files and bytes for a person to look at, not more often than eyes can follow."""

import asyncio
import contextlib
import threading
import time

from executord.ports import OnProgress, Progress

_INTERVAL_SECONDS = 0.1


class Counter:
    """Tells `on_progress` now and then, and a last time in `done`. Any thread may count."""

    def __init__(
        self,
        what: str,
        on_progress: OnProgress | None,
        *,
        files_total: int = 0,
        bytes_total: int = 0,
        detail: str = "",
    ) -> None:
        self._what = what
        self._on_progress = on_progress
        self._detail = detail
        self._files_total = files_total
        self._bytes_total = bytes_total
        self._told_at = 0.0
        self._lock = threading.Lock()
        self.files = 0
        self.bytes = 0

    def add(self, files: int, size: int) -> None:
        with self._lock:
            self.files += files
            self.bytes += size
            now = time.monotonic()
            if now - self._told_at < _INTERVAL_SECONDS:
                return
            self._told_at = now
        self._tell()

    def done(self) -> None:
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        self._on_progress(
            Progress(
                what=self._what,
                files_done=self.files,
                files_total=self._files_total,
                bytes_done=self.bytes,
                bytes_total=self._bytes_total,
                detail=self._detail,
            )
        )


def relay(on_progress: OnProgress) -> OnProgress:
    """From a thread into the loop; progress that comes after its end is dropped."""
    loop = asyncio.get_running_loop()

    def tell(progress: Progress) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(on_progress, progress)

    return tell

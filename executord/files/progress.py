"""Counting files and bytes for a person to look at, not more often than eyes can follow."""

import asyncio
import contextlib
import threading
import time
from collections import deque

from executord.ports import OnProgress, Progress

_INTERVAL_SECONDS = 0.1
_PACE_SECONDS = 5.0
_PACE_KNOWN_SECONDS = 1.0


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
        self._pace = Pace()
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

    def expect(self, files: int, size: int) -> None:
        """How much there will be, where that is known late; a total that was given stays."""
        if not self._files_total and not self._bytes_total:
            self._files_total, self._bytes_total = files, size

    def expect_more(self, files: int, size: int) -> None:
        """There is more to do than was known."""
        with self._lock:
            self._files_total += files
            self._bytes_total += size

    def done(self) -> None:
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        with self._lock:
            pace = self._pace
            pace.note(time.monotonic(), self.files, self.bytes)
            seconds_left = pace.seconds_left(self._files_total, self._bytes_total)
        self._on_progress(
            Progress(
                what=self._what,
                files_done=self.files,
                files_total=self._files_total,
                bytes_done=self.bytes,
                bytes_total=self._bytes_total,
                detail=self._detail,
                bytes_per_second=pace.bytes_per_second,
                seconds_left=seconds_left,
            )
        )


class Pace:
    """What was done in the last few seconds, and how long the rest takes at that rate."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def note(self, now: float, files: int, size: int) -> None:
        """`now` in seconds of any clock that goes on; `files` and `size` (bytes) done so far."""
        self._seen.append((now, files, size))
        while now - self._seen[1 if len(self._seen) > 1 else 0][0] > _PACE_SECONDS:
            self._seen.popleft()

    @property
    def bytes_per_second(self) -> float | None:
        return self._rate(2)

    def seconds_left(self, files_total: int, bytes_total: int) -> float | None:
        """By bytes where their total is known, else by files."""
        field, total = (2, bytes_total) if bytes_total else (1, files_total)
        rate = self._rate(field)
        if not rate or not total:
            return None
        return max(0.0, (total - self._seen[-1][field]) / rate)

    def _rate(self, field: int) -> float | None:
        if not self._seen:
            return None
        first, last = self._seen[0], self._seen[-1]
        seconds = last[0] - first[0]
        if seconds < _PACE_KNOWN_SECONDS:
            return None
        return max(0.0, (last[field] - first[field]) / seconds)


def relay(on_progress: OnProgress) -> OnProgress:
    """From a thread into the loop; progress that comes after its end is dropped."""
    loop = asyncio.get_running_loop()

    def tell(progress: Progress) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(on_progress, progress)

    return tell

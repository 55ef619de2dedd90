"""What a shared pull or build tells those who wait for it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from executord.ports import OnOutput, OnProgress, Progress

_KEPT_BYTES = 4 * 1024 * 1024


class Feed:
    """Output and progress of one piece of work, for any number of followers, late ones too.

    Keeps the last 4 MiB of output. A follower who is slower than that is told what it missed; it
    never holds up the work or the others.
    """

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._first_offset = 0
        self._end_offset = 0
        self._progress: Progress | None = None
        self._is_over = False
        self._changed = asyncio.Event()

    def output(self, data: bytes) -> None:
        if not data:
            return
        self._pieces.append(data)
        self._end_offset += len(data)
        while self._end_offset - self._first_offset > _KEPT_BYTES:
            self._first_offset += len(self._pieces.popleft())
        self._wake()

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        self._wake()

    def end(self) -> None:
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(
        self,
        on_output: OnOutput,
        on_progress: OnProgress,
        on_begin: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Hand on everything from the beginning until the end.

        `on_begin` is awaited before the first of it.
        """
        offset = 0
        shown: Progress | None = None
        while True:
            changed, is_over = self._changed, self._is_over
            if on_begin is not None and (self._progress is not None or self._end_offset):
                await on_begin()
                on_begin = None
            if self._progress is not None and self._progress is not shown:
                shown = self._progress
                on_progress(shown)
            missed, data = self._since(offset)
            offset = self._end_offset
            if missed:
                await on_output(f"[{missed} bytes of build output are not kept]\n".encode())
            if data:
                await on_output(data)
            if is_over and offset == self._end_offset:
                return
            await changed.wait()

    def _since(self, offset: int) -> tuple[int, bytes]:
        missed = max(0, self._first_offset - offset)
        skipped = offset + missed - self._first_offset
        return missed, b"".join(self._pieces)[skipped:] if offset < self._end_offset else b""

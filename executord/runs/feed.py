"""Tells followers that the node's sequence of transitions has grown."""

import asyncio


class Feed:
    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self._grown = asyncio.Event()

    def grew_to(self, seq: int) -> None:
        if seq > self.last_seq:
            self.last_seq = seq
            self._grown.set()
            self._grown = asyncio.Event()

    async def wait(self, after_seq: int, timeout_seconds: float) -> None:
        """Returns when there may be something after `after_seq`, or at the time-out."""
        if self.last_seq > after_seq:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._grown.wait()
        except TimeoutError:
            return

"""Keeps calls from piling up at an engine that hangs."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from executord.engine import errors

log = structlog.get_logger(__name__)


class Breaker:
    """Opens after some calls in a row have timed out; closes when the engine answers a ping.

    While it is open, calls fail at once instead of each waiting for its deadline. Errors that the
    engine answers with are answers: they do not count.
    """

    def __init__(
        self,
        *,
        ping: Callable[[], Awaitable[bool]],
        time_outs: int = 3,
        interval_seconds: float = 1.0,
    ) -> None:
        self._ping = ping
        self._allowed = time_outs
        self._interval_seconds = interval_seconds
        self._in_a_row = 0
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._probing is not None

    def check(self, doing: str) -> None:
        """FaultError ENGINE_UNAVAILABLE while it is open."""
        if self.is_open:
            raise errors.unavailable(doing, "the container engine does not answer.")

    def answered(self) -> None:
        self._in_a_row = 0

    def timed_out(self) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self._allowed and self._probing is None:
            log.warning("engine.hangs", time_outs=self._in_a_row)
            self._probing = asyncio.create_task(self._probe(), name="engine-breaker")

    async def _probe(self) -> None:
        while True:
            if await self._ping():
                break
            await asyncio.sleep(self._interval_seconds)
        self._in_a_row = 0
        self._probing = None
        log.info("engine.answers")

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
            self._probing = None

"""Waiting for an engine that does not answer: no state changes on a guess."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from executord.core.reasons import FaultError, Reason

log = structlog.get_logger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0


async def until_engine_answers(ask: Callable[[], Awaitable[T]]) -> T:
    """Asks again until the engine gives an answer, be it a refusal; for what is safe to repeat."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await ask()
        except FaultError as error:
            if error.fault.reason is not Reason.ENGINE_UNAVAILABLE:
                raise
            log.warning("engine.unavailable", detail=error.fault.detail, again_in_seconds=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

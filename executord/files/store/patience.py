"""Waiting, within a budget, for a store that does not answer."""

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from executord.core.reasons import FaultError, Reason
from executord.files.faults import CancelledWorkError
from executord.files.model.trees import Tree, TreeSource
from executord.ports import OnProgress, Progress

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

NEVER = threading.Event()
"""Nobody ever sets this one."""

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


class Patience:
    """`seconds` count from a call's first failure; a call that is answered ends the count.

    For one thread. What is asked has to be safe to repeat.
    """

    def __init__(
        self,
        seconds: float,
        cancelled: threading.Event,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._seconds = seconds
        self._cancelled = cancelled
        self._on_progress = on_progress

    def ask(self, call: Callable[[], _T]) -> _T:
        """Raises what the call raises; STORE_UNAVAILABLE once the budget is used up."""
        gives_up_at = 0.0
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return call()
            except FaultError as error:
                if error.fault.reason is not Reason.STORE_UNAVAILABLE:
                    raise
                now = time.monotonic()
                gives_up_at = gives_up_at or now + self._seconds
                if now >= gives_up_at:
                    raise
                wait = min(pause * random.uniform(0.8, 1.2), gives_up_at - now)  # noqa: S311 - jitter
                _tell(wait, error, self._on_progress, "storing changes")
            if self._cancelled.wait(wait):
                raise CancelledWorkError
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


async def until_store_answers(
    ask: Callable[[], Awaitable[_T]],
    *,
    seconds: float,
    on_progress: OnProgress,
    progress: Callable[[], int],
) -> _T:
    """As `Patience.ask`, but no thread waits. The count begins anew whenever `progress`, what
    came of the store so far, is more than at the failure before.
    """
    gives_up_at = 0.0
    pause = _FIRST_PAUSE_SECONDS
    came = progress()
    while True:
        try:
            return await ask()
        except FaultError as error:
            if error.fault.reason is not Reason.STORE_UNAVAILABLE:
                raise
            now = time.monotonic()
            if not gives_up_at or progress() > came:
                gives_up_at, pause = now + seconds, _FIRST_PAUSE_SECONDS
            came = progress()
            if now >= gives_up_at:
                raise
            wait = min(pause * random.uniform(0.8, 1.2), gives_up_at - now)  # noqa: S311 - jitter
            _tell(wait, error, on_progress, "fetching files")
        await asyncio.sleep(wait)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _tell(wait: float, error: FaultError, on_progress: OnProgress | None, what: str) -> None:
    log.warning("store.awaited", detail=error.fault.detail, again_in_seconds=round(wait, 1))
    if on_progress is not None:
        detail = f"the store does not answer; again in {max(1, round(wait))} s"
        on_progress(Progress(what=what, detail=detail))


class PatientTrees:
    """Trees of a source that may be away for a while."""

    def __init__(self, source: TreeSource, patience: Patience) -> None:
        self._source = source
        self._patience = patience

    def tree(self, digest: str) -> Tree:
        return self._patience.ask(lambda: self._source.tree(digest))

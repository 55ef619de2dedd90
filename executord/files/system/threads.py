"""Blocking work off the event loop, with an owner."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(
    executor: Executor, work: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Short work, which is waited for even when the caller is cancelled: a thread does not stop."""
    return await _to_the_end(executor, lambda: work(*args, **kwargs), None)


async def in_thread_until(
    executor: Executor, cancelled: threading.Event, work: Callable[[], _T]
) -> _T:
    """Long work, which looks at `cancelled` now and then; that is set when the caller is."""
    return await _to_the_end(executor, work, cancelled)


async def _to_the_end(
    executor: Executor, work: Callable[[], _T], cancelled: threading.Event | None
) -> _T:
    running = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled.set()
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()  # the cancellation is what counts
        raise

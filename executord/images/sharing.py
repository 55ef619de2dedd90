"""One piece of work a key at a time, shared by everybody who waits for its result."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from executord.core.reasons import FaultError
from executord.images.feed import Feed
from executord.ports import OnOutput, OnProgress

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Work:
    feed: Feed = field(default_factory=Feed)
    waiters: int = 0
    task: asyncio.Task[Any] | None = None


class SharedWork:
    """Owns the tasks. A waiter who is cancelled leaves the work to the others; the last one
    cancels it, and who comes then begins anew once the old work has ended.
    """

    def __init__(self) -> None:
        self._current: dict[str, _Work] = {}
        self._ending: dict[str, asyncio.Task[Any]] = {}

    async def take_part(
        self,
        key: str,
        make: Callable[[Feed], Awaitable[T]],
        *,
        on_output: OnOutput,
        on_progress: OnProgress,
        on_begin: Callable[[], Awaitable[None]] | None = None,
    ) -> tuple[T, bool]:
        """The result, and whether it was this call that began the work."""
        work = self._current.get(key)
        is_first = work is None
        if work is None:
            work = self._begin(key, make)
        assert work.task is not None
        work.waiters += 1
        try:
            await work.feed.follow(on_output, on_progress, on_begin)
            await asyncio.wait([work.task])
        finally:
            work.waiters -= 1
            if not work.waiters and not work.task.done():
                self._abandon(key, work)
        try:
            return work.task.result(), is_first
        except FaultError as error:
            raise FaultError(error.fault) from error

    def _begin(self, key: str, make: Callable[[Feed], Awaitable[T]]) -> _Work:
        work = _Work()
        task = asyncio.create_task(self._run(key, work, make), name=f"images:{key}")
        work.task = task
        self._current[key] = work
        task.add_done_callback(lambda done: self._ended(key, work, done))
        return work

    async def _run(self, key: str, work: _Work, make: Callable[[Feed], Awaitable[T]]) -> T:
        try:
            if (before := self._ending.get(key)) is not None:
                await asyncio.wait([before])
            return await make(work.feed)
        finally:
            work.feed.end()

    def _ended(self, key: str, work: _Work, task: asyncio.Task[Any]) -> None:
        if self._current.get(key) is work:
            del self._current[key]
        if self._ending.get(key) is task:
            del self._ending[key]
        if not task.cancelled():
            task.exception()  # whoever still waits asks the task itself

    def _abandon(self, key: str, work: _Work) -> None:
        assert work.task is not None
        if self._current.get(key) is work:
            del self._current[key]
        self._ending[key] = work.task
        work.task.cancel()

    async def close(self) -> None:
        tasks = [work.task for work in self._current.values() if work.task is not None]
        tasks += self._ending.values()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

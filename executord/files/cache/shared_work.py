"""One piece of work a key, however many wait for it; given up when the last of them leaves."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from executord.files.system.idle_work import IdleWork
from executord.ports import OnProgress, Progress

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 10.0

T = TypeVar("T")

Work = Callable[[OnProgress, threading.Event], T]


@dataclass(slots=True)
class _Job(Generic[T]):
    idle: IdleWork
    cancelled: threading.Event = field(default_factory=threading.Event)
    listeners: list[OnProgress] = field(default_factory=list)
    task: "asyncio.Task[T] | None" = None

    def tell(self, progress: Progress) -> None:
        for listener in tuple(self.listeners):
            listener(progress)


class SharedWork(Generic[T]):
    """What is begun `ahead` gives way to everything else, until somebody joins who waits for it."""

    def __init__(
        self,
        threads: Executor,
        ahead_threads: Executor | None = None,
        *,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._close_seconds = close_seconds
        self._threads = threads
        self._ahead_threads = ahead_threads or threads
        self._jobs: dict[str, _Job[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    async def join(
        self, key: str, work: Work[T], on_progress: OnProgress, *, ahead: bool = False
    ) -> T:
        """What `work` gives, in a thread; `on_progress` is called there. Raises what it raises."""
        job = self._jobs.get(key)
        if job is None:
            job = self._begin(key, work, ahead=ahead)
        if not ahead:
            job.idle.hurry()
        assert job.task is not None
        job.listeners.append(on_progress)
        try:
            return await asyncio.shield(job.task)
        finally:
            job.listeners.remove(on_progress)
            if not job.listeners:
                job.cancelled.set()
                self._forget(key, job)

    async def close(self) -> None:
        """Waits for a while: what does not look at its event is left behind."""
        for job in self._jobs.values():
            job.cancelled.set()
        if self._tasks:
            _, stuck = await asyncio.wait(self._tasks, timeout=self._close_seconds)
            if stuck:
                log.warning("shared_work.stuck", work=sorted(task.get_name() for task in stuck))

    def _begin(self, key: str, work: Work[T], *, ahead: bool) -> _Job[T]:
        job: _Job[T] = _Job(IdleWork(hurried=not ahead))
        self._jobs[key] = job
        loop = asyncio.get_running_loop()

        threads = self._ahead_threads if ahead else self._threads

        def in_thread() -> T:
            with job.idle.in_this_thread():
                return work(job.tell, job.cancelled)

        async def run() -> T:
            return await loop.run_in_executor(threads, in_thread)

        job.task = task = loop.create_task(run(), name=f"shared {key}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, key, job))
        return job

    def _ended(self, task: "asyncio.Task[T]", key: str, job: _Job[T]) -> None:
        self._tasks.discard(task)
        self._forget(key, job)
        if not task.cancelled():
            task.exception()  # whoever waited has it

    def _forget(self, key: str, job: _Job[T]) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]

"""Making trees ready that are not here yet: see `tree_build`.

One build a tree, however many runs wait for it; when the last of them leaves, it is given up.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

from executord.core.eviction import Space
from executord.core.reasons import FaultError
from executord.files.cache.blobs import Blobs
from executord.files.cache.flatten import Flattener
from executord.files.cache.objects import Trees
from executord.files.cache.promises import Promise
from executord.files.cache.second_try import again_if_full
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.spare_room import SpareRoom
from executord.files.cache.sweeper import Sweeper
from executord.files.cache.tree_build import BuildTools, Made, TreeBuild
from executord.files.faults import disk
from executord.files.store.transfer import Fetcher
from executord.files.system.idle_work import IdleWork
from executord.ports import Progress

__all__ = ["Made", "SnapshotBuilds"]


@dataclass(slots=True)
class _Job:
    begun_ahead: bool
    work: IdleWork
    likely: Sequence[str]
    whole: bool
    cancelled: threading.Event = field(default_factory=threading.Event)
    listeners: list[Callable[[Progress], None]] = field(default_factory=list)
    task: asyncio.Task[Made] | None = None

    def tell(self, progress: Progress) -> None:
        for listener in tuple(self.listeners):
            listener(progress)


_Key = tuple[str, bool]


class SnapshotBuilds:
    """`flattener` looks after what was built, when nobody waits for anything."""

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        blobs: Blobs,
        trees: Trees,
        snapshots: Snapshots,
        sweeper: Sweeper,
        spare: SpareRoom,
        threads: Executor,
        ahead_threads: Executor,
    ) -> None:
        self._tools = BuildTools(
            source=fetcher,
            blobs=blobs,
            trees=trees,
            snapshots=snapshots,
            make_room=sweeper.make_room,
        )
        self._sweeper = sweeper
        self._spare = spare
        self._threads = threads
        self._ahead_threads = ahead_threads
        self._jobs: dict[_Key, _Job] = {}
        self._tasks: set[asyncio.Task[Made]] = set()
        self.flattener = Flattener(self._tools, spare.check)

    async def build(
        self,
        tree: str,
        on_progress: Callable[[Progress], None],
        *,
        ahead: bool = False,
        likely: Sequence[str] = (),
        whole: bool = False,
    ) -> tuple[Made, bool]:
        """The snapshot or layer, and whether this caller was the one who had it made.

        `likely` are trees that may be near; `whole` wants a snapshot in any case. `on_progress` is
        called in a thread. What is built `ahead` gives way to everything else and evicts nothing,
        until somebody joins who waits for it. Raises FaultError.
        """
        key = tree, whole
        job = self._jobs.get(key)
        if job is not None and not ahead and job.begun_ahead:
            job.work.hurry()
            with contextlib.suppress(Exception):  # it was nobody's work, so it is nobody's failure
                return await self._wait_for(key, job, on_progress), False
            job = self._jobs.get(key)
        mine = job is None
        if job is None:
            job = self._begin(key, ahead=ahead, likely=likely)
        return await self._wait_for(key, job, on_progress), mine

    async def _wait_for(
        self, key: _Key, job: _Job, on_progress: Callable[[Progress], None]
    ) -> Made:
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
        for job in self._jobs.values():
            job.cancelled.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.flattener.close()

    def _begin(self, key: _Key, *, ahead: bool, likely: Sequence[str]) -> _Job:
        tree, whole = key
        job = self._jobs[key] = _Job(
            begun_ahead=ahead, work=IdleWork(hurried=not ahead), likely=likely, whole=whole
        )
        loop = asyncio.get_running_loop()
        threads = self._ahead_threads if ahead else self._threads
        self.flattener.begin()

        async def work() -> Made:
            return await loop.run_in_executor(threads, self._build, tree, job)

        job.task = task = loop.create_task(work(), name=f"snapshot {tree}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: self._forget(key, job))
        return job

    def _ended(self, task: asyncio.Task[Made]) -> None:
        self._tasks.discard(task)
        self.flattener.end()
        if not task.cancelled():
            task.exception()  # whoever waited has it; a build that nobody waits for has no error

    def _forget(self, key: _Key, job: _Job) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]

    def _build(self, tree: str, job: _Job) -> Made:
        build = TreeBuild(self._tools, tree, job.tell, job.cancelled, job.likely)

        def work(promise: Promise) -> Made:
            build.tools = replace(
                self._tools,
                make_room=partial(self._make_room, job, promise),
                room_taken=lambda size, files: self._sweeper.promises.kept(
                    promise, Space(size, files)
                ),
            )
            return build.run(whole=job.whole)

        with job.work.in_this_thread():
            return again_if_full(
                work,
                self._sweeper,
                self._spare,
                lambda: job.work.hurried and not job.cancelled.is_set(),
            )

    def _make_room(
        self, job: _Job, promise: Promise, incoming_bytes: int, incoming_inodes: int
    ) -> None:
        if not job.work.hurried:
            with disk("look for room"):
                self._spare.check(incoming_bytes, incoming_inodes)
            return
        try:
            self._sweeper.make_room(incoming_bytes, incoming_inodes, promise)
        except FaultError:
            if not self._spare.let_go_of_all():
                raise
            self._sweeper.make_room(incoming_bytes, incoming_inodes, promise)

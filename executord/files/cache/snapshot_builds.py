"""Making snapshots that are not here yet: fetch what is missing, then link it together.

One build a tree, however many runs wait for it; when the last of them leaves, it is given up.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from executord.files.cache.blobs import Blobs
from executord.files.cache.snapshots import About, MissingBlobError, Snapshots
from executord.files.cache.sweeper import Sweeper
from executord.files.faults import corrupt, disk
from executord.files.model.closure import Closure
from executord.files.progress import Counter
from executord.files.store.transfer import Fetcher
from executord.files.system import disk as disks
from executord.ports import Progress


@dataclass(frozen=True, slots=True)
class Made:
    about: About
    files_fetched: int
    bytes_fetched: int


@dataclass(slots=True)
class _Job:
    cancelled: threading.Event = field(default_factory=threading.Event)
    listeners: list[Callable[[Progress], None]] = field(default_factory=list)
    task: asyncio.Task[Made] | None = None

    def tell(self, progress: Progress) -> None:
        for listener in tuple(self.listeners):
            listener(progress)


class SnapshotBuilds:
    def __init__(
        self,
        *,
        fetcher: Fetcher,
        blobs: Blobs,
        snapshots: Snapshots,
        sweeper: Sweeper,
        threads: Executor,
    ) -> None:
        self._fetcher = fetcher
        self._blobs = blobs
        self._snapshots = snapshots
        self._sweeper = sweeper
        self._threads = threads
        self._jobs: dict[str, _Job] = {}
        self._tasks: set[asyncio.Task[Made]] = set()

    async def build(self, tree: str, on_progress: Callable[[Progress], None]) -> tuple[Made, bool]:
        """The snapshot, and whether this caller was the one who had it made.

        `on_progress` is called in a thread. Raises FaultError.
        """
        job = self._jobs.get(tree)
        mine = job is None
        if job is None:
            job = self._begin(tree)
        assert job.task is not None
        job.listeners.append(on_progress)
        try:
            return await asyncio.shield(job.task), mine
        finally:
            job.listeners.remove(on_progress)
            if not job.listeners:
                job.cancelled.set()
                self._forget(tree, job)

    async def close(self) -> None:
        for job in self._jobs.values():
            job.cancelled.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self, tree: str) -> _Job:
        job = self._jobs[tree] = _Job()
        loop = asyncio.get_running_loop()

        async def work() -> Made:
            return await loop.run_in_executor(self._threads, self._build, tree, job)

        job.task = task = loop.create_task(work(), name=f"snapshot {tree}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: self._forget(tree, job))
        return job

    def _ended(self, task: asyncio.Task[Made]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; a build that nobody waits for has no error

    def _forget(self, tree: str, job: _Job) -> None:
        if self._jobs.get(tree) is job:
            del self._jobs[tree]

    def _build(self, tree: str, job: _Job) -> Made:
        cancelled = job.cancelled
        closure = self._fetcher.closure(tree, cancelled)
        with self._blobs.pinned(closure.blobs):
            missing = self._blobs.missing(closure.blobs)
            fetched = sum(closure.blobs[key] for key in missing)
            if missing:
                self._fetch(closure, job)
            with contextlib.suppress(MissingBlobError):
                return Made(self._link(closure, job), len(missing), fetched)
            self._fetch(closure, job)
            try:
                return Made(self._link(closure, job), len(missing), fetched)
            except MissingBlobError as error:
                raise corrupt(f"The file content {error} vanishes from the cache.") from error

    def _fetch(self, closure: Closure, job: _Job) -> None:
        missing = {key: closure.blobs[key] for key in self._blobs.missing(closure.blobs)}
        self._sweeper.make_room(sum(disks.allocated(size) for size in missing.values()))
        counter = Counter(
            "fetching files",
            job.tell,
            files_total=len(missing),
            bytes_total=sum(missing.values()),
        )
        self._fetcher.blobs(missing, counter, job.cancelled)
        counter.done()

    def _link(self, closure: Closure, job: _Job) -> About:
        counter = Counter(
            "linking files", job.tell, files_total=closure.files, bytes_total=closure.bytes
        )
        with disk("make the run's files ready"):
            about = self._snapshots.build(closure, counter, job.cancelled)
        counter.done()
        return about

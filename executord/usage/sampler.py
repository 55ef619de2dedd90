"""What runs use, looked at about once a second, and counted to the last moment.

One owned task looks at all runs in one hop to a thread. The end of a container's first process is
noticed through its pidfd within a millisecond: then its counters are read once more, before the
engine takes its group away. Totals come from the group of the run's own, which outlives it.
"""

import asyncio
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from executord.core.reasons import Fault, FaultError, Reason
from executord.core.run import UsageSummary
from executord.ports import HostUsage, UsageSample
from executord.usage import names
from executord.usage.hierarchy import Hierarchy, remove_group
from executord.usage.host import HostMeter
from executord.usage.series import samples_from_json, to_json
from executord.usage.watched import Look, Probe, Watched, open_probe

log = structlog.get_logger(__name__)

T = TypeVar("T")

_DEADLINE_SECONDS = 10.0
_REMOVAL_PAUSE_SECONDS = 0.05
_THREADS = 2
_MOST_RELEASED = 32


class Samplers:
    """Implements ports.Meters.

    `instance` tells apart daemons on one host. `disk` is a path on the disk that `host` tells of.
    """

    def __init__(
        self,
        *,
        interval_seconds: float,
        cgroup_driver: str,
        cgroup_version: int,
        instance: str,
        disk: Path = Path("/"),
        removal_seconds: float = 1.0,
        proc: Path = Path("/proc"),
    ) -> None:
        self._interval_seconds = interval_seconds
        self._driver = cgroup_driver
        self._version = cgroup_version
        self._instance = instance
        self._proc = proc
        self._removal_seconds = removal_seconds
        self._host = HostMeter(disk)
        self._watched: dict[str, Watched] = {}
        self._released: dict[str, Watched] = {}
        self._active: dict[str, Watched] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._last_looks: dict[str, asyncio.Task[None]] = {}
        self._some_active = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="usage")
        self._hierarchy = Hierarchy((), cgroup_version, proc)

    async def open(self) -> None:
        """FaultError when the host does not tell where its control groups are."""
        read = functools.partial(Hierarchy.read, version=self._version, proc=self._proc)
        self._hierarchy = await self._in_thread(read)
        await self._in_thread(self._host.read)
        self._ticking = asyncio.create_task(self._tick(), name="usage-samples")

    async def close(self) -> None:
        """Groups of runs that go on are left: their counters count on."""
        if self._ticking is None:
            return
        ticking, self._ticking = self._ticking, None
        ticking.cancel()
        await asyncio.wait({ticking})
        if self._last_looks:
            await asyncio.wait(set(self._last_looks.values()))
        for run_id, watched in self._watched.items():
            self._rest(run_id)
            await self._in_thread(watched.close)
        self._watched.clear()
        await self._in_thread(self._remove_instance_group)
        await asyncio.to_thread(self._threads.shutdown)

    # -- a run -------------------------------------------------------------------------------------

    def cgroup_parent(self, run_id: str) -> str:
        return names.parent_group(self._driver, self._instance, run_id)

    async def start(self, run_id: str, pid: int) -> None:
        async with self._turn(run_id):
            if run_id in self._watched:
                return
            descriptor = _pidfd(pid)
            try:
                probe = await self._in_thread(functools.partial(self._probe, run_id, pid))
                look = await self._in_thread(probe.look) if probe is not None else None
            except BaseException:
                _close(descriptor)
                raise
            watched = Watched(probe, width_seconds=self._interval_seconds, descriptor=descriptor)
            self._watched[run_id] = watched
            self._released.pop(run_id, None)
            if look is not None:
                watched.add(look)
                self._activate(run_id, watched)

    async def finish(self, run_id: str) -> UsageSummary | None:
        async with self._turn(run_id):
            watched = self._watched.get(run_id)
            if watched is None:
                probe = await self._in_thread(functools.partial(self._probe, run_id, 0))
                watched = Watched(probe, width_seconds=self._interval_seconds)
                self._watched[run_id] = watched
            if watched.summary is None:
                await self._finish(run_id, watched)
            return watched.summary

    async def release(self, run_id: str) -> None:
        """What cannot be removed is left, and said: it costs a few kilobytes of the kernel's."""
        async with self._turn(run_id):
            await self._last_look_taken(run_id)
            self._rest(run_id)
            watched = self._watched.pop(run_id, None)
            if watched is not None:
                self._remember(run_id, watched)
                await self._in_thread(watched.close)
            if not await self._group_removed(run_id):
                log.warning("usage.group_left", run_id=run_id, why="something is still in it")
        self._turns.pop(run_id, None)

    def record(self, run_id: str) -> Mapping[str, object] | None:
        watched = self._seen(run_id)
        if watched is None or (watched.latest is None and watched.summary is None):
            return None
        return to_json(watched.series, watched.summary)

    def restore(self, record: object) -> Sequence[UsageSample]:
        """The samples of a run that is over, from what `record` gave."""
        return samples_from_json(record)

    def samples(self, run_id: str, since: float) -> Sequence[UsageSample]:
        watched = self._seen(run_id)
        return watched.samples(since) if watched is not None else ()

    def latest(self, run_id: str) -> UsageSample | None:
        watched = self._seen(run_id)
        return watched.latest if watched is not None else None

    async def host(self) -> HostUsage:
        return await self._in_thread(self._host.read)

    def _seen(self, run_id: str) -> Watched | None:
        return self._watched.get(run_id) or self._released.get(run_id)

    def _remember(self, run_id: str, watched: Watched) -> None:
        """Samples of runs that have just ended can be read until their record has been kept."""
        self._released[run_id] = watched
        while len(self._released) > _MOST_RELEASED:
            del self._released[next(iter(self._released))]

    # -- sampling ----------------------------------------------------------------------------------

    def _turn(self, run_id: str) -> asyncio.Lock:
        return self._turns.setdefault(run_id, asyncio.Lock())

    def _activate(self, run_id: str, watched: Watched) -> None:
        self._active[run_id] = watched
        self._some_active.set()
        if watched.descriptor >= 0:
            loop = asyncio.get_running_loop()
            loop.add_reader(watched.descriptor, self._process_ended, run_id, watched)

    def _rest(self, run_id: str) -> None:
        """No more samples of it; its probe stays open."""
        self._active.pop(run_id, None)
        if not self._active:
            self._some_active.clear()
        watched = self._watched.get(run_id)
        if watched is not None and watched.descriptor >= 0:
            asyncio.get_running_loop().remove_reader(watched.descriptor)
            _close(watched.descriptor)
            watched.descriptor = -1

    def _process_ended(self, run_id: str, watched: Watched) -> None:
        self._rest(run_id)
        look = asyncio.create_task(self._look_last(watched), name=f"usage-end-{run_id}")
        self._last_looks[run_id] = look
        look.add_done_callback(lambda _: self._last_looks.pop(run_id, None))

    async def _look_last(self, watched: Watched) -> None:
        assert watched.probe is not None
        look = await self._in_thread(watched.probe.look)
        if look is not None:
            watched.note_end(look)

    async def _last_look_taken(self, run_id: str) -> None:
        look = self._last_looks.get(run_id)
        if look is not None:
            await asyncio.wait({look})

    async def _finish(self, run_id: str, watched: Watched) -> None:
        await self._last_look_taken(run_id)
        self._rest(run_id)
        if watched.probe is not None:
            look = await self._in_thread(watched.probe.look)
            if look is not None:
                watched.note_end(look)
        watched.summarize()

    async def _group_removed(self, run_id: str) -> bool:
        """A group whose last process has just ended is busy for a moment more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._removal_seconds
        while not await self._in_thread(functools.partial(self._remove_group, run_id)):
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_REMOVAL_PAUSE_SECONDS)
        return True

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if not self._some_active.is_set():
                await self._some_active.wait()
                due = loop.time()
            due = max(due + self._interval_seconds, loop.time())
            await asyncio.sleep(due - loop.time())
            active = dict(self._active)
            looks = await self._in_thread(functools.partial(_look_at_all, active))
            for run_id, look in looks.items():
                if self._active.get(run_id) is active[run_id]:
                    active[run_id].add(look)

    # -- in a thread -------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                return await loop.run_in_executor(self._threads, work)
        except (OSError, TimeoutError) as error:
            raise FaultError(
                Fault(Reason.INTERNAL, f"Resource use cannot be read: {error!r}.")
            ) from error

    def _own_path(self, run_id: str) -> str:
        return names.group_path(self._driver, self.cgroup_parent(run_id))

    def _probe(self, run_id: str, pid: int) -> Probe | None:
        return open_probe(self._hierarchy, self._own_path(run_id), pid)

    def _remove_group(self, run_id: str) -> bool:
        """False while something is in it."""
        return self._remove(self._own_path(run_id))

    def _remove_instance_group(self) -> None:
        self._remove(names.instance_group(self._driver, self._instance), inside=False)

    def _remove(self, path: str, *, inside: bool = True) -> bool:
        gone = True
        for directory in self._hierarchy.everywhere(path):
            try:
                gone = remove_group(directory, inside=inside) and gone
            except OSError as error:
                log.warning("usage.group_left", path=str(directory), why=str(error))
        return gone


def _look_at_all(active: Mapping[str, Watched]) -> Mapping[str, Look]:
    found: dict[str, Look] = {}
    for run_id, watched in active.items():
        look = watched.probe.look() if watched.probe is not None else None
        if look is not None:
            found[run_id] = look
    return found


def _pidfd(pid: int) -> int:
    """-1 when there is no such process, or the kernel does not know how."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)

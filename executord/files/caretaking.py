"""Keeping the cache in order in the background, and telling what it holds."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import structlog

from executord.core.cache_trace import Use
from executord.core.reasons import FaultError
from executord.files.cache.report import report_on
from executord.files.cache.sweeper import EVERYTHING
from executord.files.faults import disk
from executord.files.parts import Parts
from executord.files.system import disk as disks
from executord.files.system.threads import in_thread
from executord.ports import CacheEntry, FilesStats, PruneReport

log = structlog.get_logger(__name__)

_SWEEP_SECONDS = 60.0


class Caretaker:
    def __init__(self, parts: Parts, wake: asyncio.Event) -> None:
        self._parts = parts
        self._sweeper = parts.sweeper
        self._sweeping = parts.threads.sweeping
        self._wake = wake
        self._wake_idle = asyncio.Event()

    async def stats(self) -> FilesStats:
        return await in_thread(self._parts.threads.quick, self._stats)

    def _stats(self) -> FilesStats:
        parts, tally = self._parts, self._parts.tally
        with disk("look at the file cache"):
            self._sweeper.accounting.look_at_quarantine()
            return FilesStats(
                blobs=parts.blobs.count,
                blob_bytes=parts.blobs.bytes,
                snapshots=len(parts.snapshots.all()),
                workspaces=parts.workspaces.count(),
                hits_files=tally.hits_files,
                hits_bytes=tally.hits_bytes,
                misses_files=tally.misses_files,
                misses_bytes=tally.misses_bytes,
                evicted_bytes=self._sweeper.evicted_bytes,
                max_bytes=self._sweeper.limits.max_size_bytes,
                disk_free_bytes=disks.free_bytes(parts.layout.root),
                damaged=parts.control.damaged,
                mended=parts.control.mended,
                quarantine_bytes=parts.control.quarantine.bytes,
                report=report_on(self._sweeper, parts.snapshots, parts.workspaces.leases()),
            )

    async def entries(self) -> Sequence[CacheEntry]:
        return await in_thread(self._sweeping, self._entries)

    def _entries(self) -> Sequence[CacheEntry]:
        with disk("look at the file cache"):
            return self._sweeper.entries()

    async def prune(self, *, dry_run: bool) -> PruneReport:
        """Everything that no run needs."""
        report = await in_thread(self._sweeping, self._prune, dry_run=dry_run)
        self._wake.set()
        return report

    def _prune(self, *, dry_run: bool) -> PruneReport:
        sweeper = self._sweeper
        with disk("prune the file cache"):
            sweeper.accounting.refresh(self._kept(), self._parts.leaving, hurry=True)
            coming = sweeper.trash.coming
            plan = sweeper.plan(EVERYTHING) if dry_run else sweeper.sweep(EVERYTHING, "prune")
        return PruneReport(
            victims=plan.victims,
            freed_bytes=plan.freed.bytes,
            freed_inodes=plan.freed.inodes,
            coming_bytes=coming.bytes,
            dry_run=dry_run,
        )

    async def trace(self) -> Sequence[Use]:
        """The uses that are recorded, the oldest first."""
        return await in_thread(self._sweeping, self._trace)

    def _trace(self) -> Sequence[Use]:
        with disk("read the cache's trace"):
            self._sweeper.uses.flush()
            return list(self._sweeper.uses.read_trace())

    # -- in the background -------------------------------------------------------------------------

    async def keep_sweeping(self) -> None:
        """Until the daemon leaves: never cancelled, since 3.11's wait_for may swallow that."""
        idle = asyncio.create_task(self._keep_idle_work(), name="files idle caretaker")
        while not self._parts.leaving.is_set():
            await self._safely(self._sweep)
            self._wake_idle.set()
            await self._woken(self._wake)
        self._wake_idle.set()
        await idle

    async def close(self) -> None:
        """When nothing is added any more."""
        await self._safely(self._close)

    async def _keep_idle_work(self) -> None:
        """What takes its time, and must keep nobody from sweeping."""
        while not self._parts.leaving.is_set():
            await self._woken(self._wake_idle)
            if not self._parts.leaving.is_set():
                await self._safely(self._work_idly)

    async def _woken(self, event: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), _SWEEP_SECONDS)
        event.clear()

    async def _safely(self, work: Callable[[], None]) -> None:
        threads = self._parts.threads
        try:
            await in_thread(threads.idle if work == self._work_idly else self._sweeping, work)
        except FaultError as error:
            log.warning("cache.sweep_failed", detail=error.fault.detail)
        except Exception:  # a bug here must not let the disk fill up
            log.exception("cache.sweep_crashed")

    def _sweep(self) -> None:
        with disk("tidy the file cache"):
            self._sweeper.empty_trash_if_short(self._parts.leaving)
            wanted = self._sweeper.wanted()
            if wanted is not None:
                self._sweeper.sweep(*wanted)
                if wanted[1] in ("free_space", "free_inodes"):
                    self._sweeper.give_up_beside(lambda: self._sweeper.wanted() is None)
            self._parts.control.quarantine.tidy(self._parts.control.is_live)
            self._sweeper.uses.flush()

    def _work_idly(self) -> None:
        sweeper, leaving = self._sweeper, self._parts.leaving
        with disk("tidy the file cache"):
            sweeper.empty_trash(leaving)
            self._parts.blobs.forget_partials()
            sweeper.accounting.refresh(self._kept(), leaving)
            if sweeper.accounting.is_due:
                sweeper.accounting.count(leaving)
            sweeper.accounting.save()

    def _close(self) -> None:
        with disk("remember what the file cache holds"):
            self._sweeper.uses.flush()
            self._sweeper.accounting.close()

    def _kept(self) -> dict[str, bool]:
        """By run, whether it is over and only its changes are kept."""
        return {lease.run: lease.kept for lease in self._parts.workspaces.leases()}

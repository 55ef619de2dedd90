"""Keeping the cache in order in the background, and telling what it holds."""

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from executord.core.reasons import FaultError
from executord.files.faults import disk
from executord.files.parts import Parts
from executord.files.system import disk as disks
from executord.files.system.threads import in_thread
from executord.ports import CacheEntry, FilesStats, PruneReport

log = structlog.get_logger(__name__)

_SWEEP_SECONDS = 60.0
_EVERYTHING = 1 << 62


class Caretaker:
    def __init__(self, parts: Parts, wake: asyncio.Event) -> None:
        self._parts = parts
        self._sweeper = parts.sweeper
        self._sweeping = parts.threads.sweeping
        self._wake = wake

    async def stats(self) -> FilesStats:
        return await in_thread(self._parts.threads.quick, self._stats)

    def _stats(self) -> FilesStats:
        parts, tally = self._parts, self._parts.tally
        with disk("look at the file cache"):
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
        with disk("prune the file cache"):
            sweeper = self._sweeper
            plan = sweeper.plan(_EVERYTHING) if dry_run else sweeper.sweep(_EVERYTHING)
        return PruneReport(victims=plan.victims, freed_bytes=plan.freed_bytes, dry_run=dry_run)

    async def keep_sweeping(self) -> None:
        """Until the daemon leaves: never cancelled, since 3.11's wait_for may swallow that."""
        while not self._parts.leaving.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _SWEEP_SECONDS)
            self._wake.clear()
            try:
                await in_thread(self._sweeping, self._sweep)
            except FaultError as error:
                log.warning("cache.sweep_failed", detail=error.fault.detail)
            except Exception:  # a bug here must not let the disk fill up
                log.exception("cache.sweep_crashed")

    def _sweep(self) -> None:
        with disk("tidy the file cache"):
            wanted = self._sweeper.wanted_bytes()
            if wanted:
                self._sweeper.sweep(wanted)
            self._sweeper.empty_trash(self._parts.leaving)

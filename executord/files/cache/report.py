"""What the cache tells of itself, put together from those who know."""

from collections.abc import Iterable
from typing import Protocol

from executord.files.cache.remembered import Asked
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.sweeper import Sweeper
from executord.ports import (
    AskedOf,
    CacheKind,
    CacheLimits,
    CacheReport,
    Counted,
    Eviction,
    EvictionSum,
    FetchRates,
    WorkspaceUse,
)


class LeaseLike(Protocol):
    """What is told of a run's directory."""

    @property
    def run(self) -> str: ...
    @property
    def tree(self) -> str: ...
    @property
    def made_at(self) -> float: ...
    @property
    def kept(self) -> bool: ...
    @property
    def kept_at(self) -> float: ...


def report_on(sweeper: Sweeper, snapshots: Snapshots, leases: Iterable[LeaseLike]) -> CacheReport:
    """Raises OSError."""
    accounting, remembered = sweeper.accounting, sweeper.remembered
    used = accounting.used()
    per_file, per_byte = remembered.fetch_cost.per_file_and_byte
    workspaces = [_workspace(sweeper, lease) for lease in leases]
    return CacheReport(
        used_bytes=used.bytes,
        used_inodes=used.inodes,
        coming_bytes=sweeper.trash.coming.bytes,
        saved_bytes=_saved(sweeper, snapshots),
        limits=_limits(sweeper),
        kinds=accounting.kinds(),
        since_start=_asked(sweeper.uses.since_start),
        in_all=_asked(remembered.asked),
        fetched=FetchRates(
            files=remembered.fetched.files,
            bytes=remembered.fetched.bytes,
            seconds=remembered.fetched.seconds,
            seconds_per_file=per_file,
            seconds_per_byte=per_byte,
        ),
        counted=Counted(
            at=remembered.counted_at,
            corrections=remembered.corrections,
            corrected_bytes=remembered.corrected_bytes,
        ),
        evictions=tuple(
            EvictionSum(trigger=trigger, entries=sums.entries, bytes=sums.bytes, inodes=sums.inodes)
            for trigger, sums in list(remembered.evicted.items())
        ),
        recent_evictions=tuple(
            Eviction(
                time=each.time,
                kind=each.kind,
                digest=each.digest,
                trigger=each.trigger,
                why=each.why,
                freed_bytes=each.freed_bytes,
            )
            for each in list(remembered.recent)
        ),
        leases=tuple(use for use, kept in workspaces if not kept),
        kept=tuple(use for use, kept in workspaces if kept),
        pins=snapshots.pinned(),
    )


def _saved(sweeper: Sweeper, snapshots: Snapshots) -> int:
    """What a copy of every tree would take, less what they all take here."""
    grounds = snapshots.grounds()
    apart = sum({ground.tree: about.bytes for ground, about in grounds.items()}.values())
    kinds = sweeper.accounting.kinds()
    names: tuple[CacheKind, ...] = ("blobs", "snapshots", "layers")
    here = sum(kinds[name].bytes for name in names)
    return max(0, apart - here)


def _limits(sweeper: Sweeper) -> CacheLimits:
    limits, free = sweeper.limits, sweeper.free()
    return CacheLimits(
        max_bytes=limits.max_size_bytes,
        max_inodes=limits.max_inodes,
        low_watermark=limits.low_watermark,
        high_watermark=limits.high_watermark,
        min_free_bytes=limits.min_free_bytes,
        min_free_inodes=limits.min_free_inodes,
        disk_free_bytes=free.bytes,
        disk_free_inodes=free.inodes,
    )


def _asked(asked: Asked) -> AskedOf:
    return AskedOf(
        since=asked.since,
        hit_runs=asked.hit_runs,
        missed_runs=asked.missed_runs,
        hit_files=asked.hit_files,
        missed_files=asked.missed_files,
        hit_bytes=asked.hit_bytes,
        missed_bytes=asked.missed_bytes,
    )


def _workspace(sweeper: Sweeper, lease: LeaseLike) -> tuple[WorkspaceUse, bool]:
    space = sweeper.accounting.workspace(lease.run)
    why = "its run is over, and what it changed is not in the store" if lease.kept else "its run"
    use = WorkspaceUse(
        run=lease.run,
        tree=lease.tree,
        bytes=space.bytes,
        inodes=space.inodes,
        since=lease.kept_at or lease.made_at,
        why=why,
    )
    return use, lease.kept

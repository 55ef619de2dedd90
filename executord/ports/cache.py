"""What the file cache tells of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

CacheKind = Literal[
    "blobs",
    "snapshots",
    "layers",
    "live_workspaces",
    "kept_workspaces",
    "quarantine",
    "partial_blobs",
    "pack_indexes",
]
EvictionTrigger = Literal[
    "high_watermark", "inode_watermark", "free_space", "free_inodes", "room_for_a_run", "prune"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindUse:
    """How many there are, and what they take on disk. What is shared is with the blobs."""

    entries: int
    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedOf:
    """What runs wanted since then: found here, or fetched. A run hits that fetches nothing."""

    since: float
    hit_runs: int
    missed_runs: int
    hit_files: int
    missed_files: int
    hit_bytes: int
    missed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionSum:
    trigger: EvictionTrigger
    entries: int
    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """`why` is for people: when it was used last, what it would cost, what it freed."""

    time: float
    kind: str
    digest: str
    trigger: str
    why: str
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceUse:
    """A run's own directory. `since` is when it was made, or from when on it was kept."""

    run: str
    tree: str
    bytes: int
    inodes: int
    since: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRates:
    """Since the cache was made; 0 seconds where nothing was fetched yet.

    `seconds_per_file` and `seconds_per_byte` are what is reckoned with now.
    """

    files: int
    bytes: int
    seconds: float
    seconds_per_file: float
    seconds_per_byte: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """0 inodes: no limit. Free inodes are None where the filesystem has no number of them."""

    max_bytes: int
    max_inodes: int
    low_watermark: float
    high_watermark: float
    min_free_bytes: int
    min_free_inodes: int
    disk_free_bytes: int
    disk_free_inodes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The last full count, at 0.0 if there was none; what it had to put right, in all."""

    at: float
    corrections: int
    corrected_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """`pins` are trees by who holds them. `coming_bytes` are evicted and not yet deleted."""

    used_bytes: int
    used_inodes: int
    coming_bytes: int
    saved_bytes: int
    limits: CacheLimits
    kinds: Mapping[CacheKind, KindUse]
    since_start: AskedOf
    in_all: AskedOf
    fetched: FetchRates
    counted: Counted
    evictions: tuple[EvictionSum, ...] = ()
    recent_evictions: tuple[Eviction, ...] = ()
    leases: tuple[WorkspaceUse, ...] = ()
    kept: tuple[WorkspaceUse, ...] = ()
    pins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

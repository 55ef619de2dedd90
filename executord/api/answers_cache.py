"""What the socket answers about the file cache in detail: its use, limits, evictions, and trace."""

from executord.api.answers import Answer, Time
from executord.ports import CacheLimits, EvictionSum, FetchRates, KindUse


class AskedOfAnswer(Answer):
    """What runs wanted since then, and how much of it was here. Ratios are null before a first."""

    since: Time | None
    hit_runs: int
    missed_runs: int
    hit_files: int
    missed_files: int
    hit_bytes: int
    missed_bytes: int
    run_hit_ratio: float | None
    file_hit_ratio: float | None
    byte_hit_ratio: float | None


class EvictionAnswer(Answer):
    """One thing that went; `why` is for people."""

    time: Time
    kind: str
    digest: str
    trigger: str
    why: str
    freed_bytes: int


class WorkspaceUseAnswer(Answer):
    """A run's own directory; never evicted."""

    run: str
    tree: str
    bytes: int
    inodes: int
    since: Time
    why: str


class CountedAnswer(Answer):
    """When all of it was last counted one by one (null: not yet), and what that put right."""

    at: Time | None
    corrections: int
    corrected_bytes: int


class CacheReportAnswer(Answer):
    """`kinds` are blobs, snapshots, layers, live_workspaces, kept_workspaces, quarantine,
    partial_blobs (large ones that are half fetched) and pack_indexes; what
    is shared is with the blobs. `coming_bytes` are evicted and being deleted. `pins` says by whom
    each tree is held. Runs and trees are named to those alone who may see all runs.
    """

    used_bytes: int
    used_inodes: int
    coming_bytes: int
    saved_bytes: int
    limits: CacheLimits
    kinds: dict[str, KindUse]
    since_start: AskedOfAnswer
    in_all: AskedOfAnswer
    fetched: FetchRates
    counted: CountedAnswer
    evictions: list[EvictionSum]
    recent_evictions: list[EvictionAnswer]
    leases: list[WorkspaceUseAnswer]
    kept: list[WorkspaceUseAnswer]
    pins: dict[str, list[str]]


class TraceUseAnswer(Answer):
    """A run that wanted a tree. `parts` are its blobs or a sample of them, 12 bytes each, base64:
    the first 8 bytes of the digest, and its blocks of 4 KiB; "" where an earlier use has them.
    `time` is in Unix seconds.
    """

    time: float
    tree: str
    way: str
    files: int
    bytes: int
    own_bytes: int
    own_inodes: int
    own_seconds: float
    seconds_per_file: float
    seconds_per_byte: float
    one_in: int
    parts: str


class TraceAnswer(Answer):
    """What runs asked the cache for, the oldest first; `executorctl cache simulate` replays it."""

    uses: list[TraceUseAnswer]

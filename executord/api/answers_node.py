"""What the socket answers about the node, its caches, its use and its health."""

from typing import Literal

from executord.api.answers import Answer, ProgressAnswer, SampleAnswer, Time
from executord.api.answers_cache import CacheReportAnswer
from executord.core.reasons import Reason
from executord.core.states import State
from executord.ports import EngineFacts, WorkspaceModes
from executord.runs.node import TierState
from executord.runs.prefetch import ItemState, JobState


class FileCacheAnswer(Answer):
    """`damaged` things were found since the daemon started, of which `mended` are right again."""

    blobs: int
    blob_bytes: int
    snapshots: int
    workspaces: int
    hits_files: int
    hits_bytes: int
    misses_files: int
    misses_bytes: int
    evicted_bytes: int
    max_bytes: int
    disk_free_bytes: int
    damaged: int
    mended: int
    quarantine_bytes: int
    report: CacheReportAnswer | None


class ImageCacheAnswer(Answer):
    images: int
    own_bytes: int


class PrefetchItemAnswer(Answer):
    """`way` says how it came to be ready; `detail` and `reason` why it is not."""

    kind: Literal["revision", "image"]
    name: str
    state: ItemState
    way: str
    detail: str
    reason: Reason | None
    progress: ProgressAnswer | None


class PrefetchAnswer(Answer):
    """`incomplete`: it has ended, and not all of it is ready. What is ready is held for a while."""

    id: str
    state: JobState
    asked_at: Time
    ended_at: Time | None
    held_until: Time | None
    items: list[PrefetchItemAnswer]


class PrefetchesAnswer(Answer):
    """Newest first: those under way, and the last ones that ended."""

    jobs: list[PrefetchAnswer]


class CacheAnswer(Answer):
    files: FileCacheAnswer
    images: ImageCacheAnswer
    prefetches: list[PrefetchAnswer]


class CacheEntryAnswer(Answer):
    """`own_bytes` would be freed if only this went; of a victim it is what it really frees.

    A layer stands on the tree `base`, `depth` layers above a snapshot. Old uses count for less.
    `cost_seconds` is what getting it again would take. One is "held below" by layers on it that
    are in use. `why` says of a victim why it goes.
    """

    digest: str
    kind: Literal["snapshot", "blob", "layer"]
    size_bytes: int
    own_bytes: int
    files: int
    last_used: Time
    pinned_by: list[str]
    own_inodes: int
    base: str
    depth: int
    uses: float
    cost_seconds: float
    state: Literal["ready", "in use", "held below"]
    why: str


class TreesAnswer(Answer):
    """The trees that are kept ready, last used first; `total` counts those beyond `limit` too."""

    entries: list[CacheEntryAnswer]
    total: int


class ImageEntryAnswer(Answer):
    key: str
    reference: str
    image_id: str
    size_bytes: int
    own_bytes: int
    last_used: Time
    used_by: list[str]
    made_by: Literal["local", "pulled", "built"]
    made_seconds: float


class ImagesAnswer(Answer):
    entries: list[ImageEntryAnswer]
    total: int


class PruneAnswer(Answer):
    """What went, or would go, and what it really frees; at most 1000 victims are named.

    Files are deleted slowly afterwards. `coming_bytes` had been evicted before.
    """

    dry_run: bool
    freed_bytes: int
    freed_inodes: int
    coming_bytes: int
    victims: list[CacheEntryAnswer]
    victims_total: int


class HostAnswer(Answer):
    time: Time
    cpus: int
    cpu_cores_used: float
    load_1m: float
    memory_total_bytes: int
    memory_available_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int


class RunUseAnswer(Answer):
    """`sample` is null before the first one was taken."""

    id: str
    project: str
    tier: str
    state: State
    sample: SampleAnswer | None


class StatsAnswer(Answer):
    host: HostAnswer
    runs: list[RunUseAnswer]


class NodeAnswer(Answer):
    """The node. `why_not` is "" while it accepts runs; `engine` is null while that is silent.

    `workspaces` says how runs get their working directories: the way that was chosen, and of each
    of the others whether it works here, or why not.
    """

    name: str
    instance: str
    version: str
    started_at: Time
    accepting: bool
    why_not: str
    queued: int
    running: int
    max_queue: int
    cpus: float
    memory_bytes: int
    gpus: int
    promised_cpus: float
    promised_memory_bytes: int
    promised_gpus: int
    tiers: list[TierState]
    store_url: str
    working_dir: str
    engine: EngineFacts | None
    workspaces: WorkspaceModes | None


class HealthAnswer(Answer):
    status: Literal["ok"] = "ok"


class ReadyAnswer(Answer):
    ready: Literal[True] = True

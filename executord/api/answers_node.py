"""What the socket answers about the node, its caches, its use and its health."""

from typing import Literal

from executord.api.answers import Answer, SampleAnswer, Time
from executord.core.states import State
from executord.ports import EngineFacts
from executord.runs.node import TierState


class FileCacheAnswer(Answer):
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


class ImageCacheAnswer(Answer):
    images: int
    own_bytes: int


class CacheAnswer(Answer):
    files: FileCacheAnswer
    images: ImageCacheAnswer


class CacheEntryAnswer(Answer):
    """`own_bytes` would be freed if only this went."""

    digest: str
    kind: Literal["snapshot", "blob", "layer"]
    size_bytes: int
    own_bytes: int
    files: int
    last_used: Time
    pinned_by: list[str]


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
    """What went, or would go, and what it really frees; at most 1000 victims are named."""

    dry_run: bool
    freed_bytes: int
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
    """The node. `why_not` is "" while it accepts runs; `engine` is null while that is silent."""

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


class HealthAnswer(Answer):
    status: Literal["ok"] = "ok"


class ReadyAnswer(Answer):
    ready: Literal[True] = True

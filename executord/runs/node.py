"""What a node tells about itself."""

from dataclasses import dataclass

from executord.ports import EngineFacts, WorkspaceModes


@dataclass(frozen=True, slots=True, kw_only=True)
class TierState:
    """A tier: what each of its runs gets, how many may hold a slot, how many do, how many wait."""

    name: str
    cpus: float
    memory_bytes: int
    gpus: int
    max_runs: int
    promised_runs: int
    queued_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """`why_not` is "" while the node accepts runs.

    `instance` tells one start of the daemon from the next. `queued` runs wait for a slot;
    `running` counts those that hold one. `promised_*` is the sum over the latter. `engine` is None
    while the engine does not answer. `store_url` is free of credentials. `workspaces` says how runs
    get their working directories.
    """

    name: str
    instance: str
    version: str
    started_at: float
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
    tiers: tuple[TierState, ...]
    store_url: str
    working_dir: str
    engine: EngineFacts | None = None
    workspaces: WorkspaceModes | None = None

"""What runs and the host use."""

from collections.abc import (
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Protocol

from executord.core.run import (
    UsageSummary,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSample:
    """One look at a run's control group. Counters (`*_total`, seconds) grow from its start.

    `memory_bytes` is the working set: what cannot be dropped; page cache apart. Fields that this
    kernel does not tell are None.
    """

    time: float
    cpu_seconds: float
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    cpu_throttled_seconds: float | None = None
    cpu_cores: float = 0.0
    memory_bytes: int = 0
    memory_cache_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_peak_bytes: int | None = None
    oom_kills: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUsage:
    time: float
    cpus: int
    cpu_cores_used: float
    load_1m: float
    memory_total_bytes: int
    memory_available_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int


class Meters(Protocol):
    """What runs and the host use. Samples are taken in the background once a meter is started."""

    def cgroup_parent(self, run_id: str) -> str:
        """The run's own control group, to be given to the engine; it outlives the container."""
        ...

    async def start(self, run_id: str, pid: int) -> None:
        """`pid` is the container's first process. Idempotent; goes on after a restart."""
        ...

    async def finish(self, run_id: str) -> UsageSummary | None:
        """Read the counters a last time and stop sampling. None where nothing was ever seen.

        Also right for a container that has ended: its control group is still there.
        """
        ...

    async def release(self, run_id: str) -> None:
        """Remove the run's control group."""
        ...

    def record(self, run_id: str) -> Mapping[str, object] | None:
        """The run's series, downsampled and JSON-ready, to be kept with the run."""
        ...

    def samples(self, run_id: str, since: float) -> Sequence[UsageSample]: ...
    def latest(self, run_id: str) -> UsageSample | None: ...
    async def host(self) -> HostUsage: ...

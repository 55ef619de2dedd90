"""What the API is given: the parts of the daemon it speaks for, as narrow protocols.

Every method may raise RefusedError (an answer to the caller) or FaultError (a part cannot do it
now). Run ids that reach a service have the form of one; whether there is such a run, it says.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from executord.core.cache_trace import Use
from executord.core.run import Run, StopOrder, Transition, UsageSummary
from executord.ports import (
    CacheEntry,
    ConsoleRecord,
    FileChange,
    FilesStats,
    HostUsage,
    ImageEntry,
    Progress,
    PruneReport,
    RunPage,
    Stream,
    UsageSample,
    VerifyReport,
)
from executord.runs.drafts import AssignmentDraft, Submitted
from executord.runs.node import NodeState
from executord.runs.prefetch import PrefetchJob, PrefetchWanted
from executord.runs.sync import SyncReport


class RunManager(Protocol):
    async def submit(
        self, draft: AssignmentDraft, secrets: Mapping[str, str], owner_uid: int
    ) -> Submitted:
        """Durable when it returns. RefusedError: ID_CONFLICT, UNKNOWN_TIER, QUEUE_FULL, …"""
        ...

    async def stop(self, run_id: str, order: StopOrder) -> Run:
        """Durable when it returns; repeating it changes nothing. UNKNOWN_RUN, RUN_OVER."""
        ...

    async def sync(self, run_id: str, *, discard: bool = False) -> SyncReport:
        """Stored when it returns. UNKNOWN_RUN, NOTHING_TO_SYNC, SHUTTING_DOWN."""
        ...

    async def run(self, run_id: str) -> Run:
        """UNKNOWN_RUN."""
        ...

    async def runs(
        self, *, state: str | None, project: str | None, limit: int, cursor: str | None
    ) -> RunPage:
        """Newest first; ValueError for a cursor that was never given."""
        ...

    def live_runs(self) -> Sequence[Run]: ...
    async def owner_of(self, run_id: str) -> int | None: ...
    async def transitions_of(self, run_id: str) -> Sequence[Transition]: ...
    async def transitions_after(self, seq: int, limit: int) -> Sequence[Transition]: ...
    async def wait_for_events(self, after_seq: int, timeout_seconds: float) -> None:
        """Returns when something newer may be there, and at the latest after the time-out."""
        ...

    def progress_of(self, run_id: str) -> Mapping[str, Progress]:
        """By stage name; empty for a run that is not being worked on."""
        ...

    async def usage_of(self, run_id: str) -> UsageSummary | None: ...
    async def usage_samples(self, run_id: str, since: float) -> Sequence[UsageSample]:
        """Those after `since`, oldest first."""
        ...

    async def changes_of(self, run_id: str) -> Sequence[FileChange]: ...
    def queue_position(self, run_id: str) -> int | None:
        """0 is next; None when it does not wait."""
        ...

    def node(self) -> NodeState: ...
    def ready(self) -> tuple[bool, str]:
        """Whether the node can do its work, and if not, why."""
        ...


class ConsoleReader(Protocol):
    def read(
        self, run_id: str, *, since: int, follow: bool, stream: Stream | None
    ) -> AsyncIterator[ConsoleRecord]: ...


class FileCache(Protocol):
    async def stats(self) -> FilesStats: ...
    async def entries(self) -> Sequence[CacheEntry]: ...
    async def prune(self, *, dry_run: bool) -> PruneReport: ...
    async def trace(self) -> Sequence[Use]:
        """What runs asked the cache for, the oldest first."""
        ...

    def verify(self, *, repair: bool) -> AsyncIterator[Progress | VerifyReport]:
        """The report comes last; closing it before is giving up."""
        ...


class ImageCache(Protocol):
    async def entries(self) -> Sequence[ImageEntry]: ...


class Prefetching(Protocol):
    async def prefetch(self, wanted: PrefetchWanted) -> PrefetchJob:
        """Begun, or ended where all of it is here. QUEUE_FULL, IMAGE_REQUIRED, SHUTTING_DOWN."""
        ...

    def jobs(self) -> Sequence[PrefetchJob]:
        """Newest first: those under way, and the last ones that ended."""
        ...


class Meter(Protocol):
    def latest(self, run_id: str) -> UsageSample | None: ...
    async def host(self) -> HostUsage: ...


class Metrics(Protocol):
    def render(self) -> bytes:
        """Prometheus text exposition, version 0.0.4."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`stop_grace_seconds` counts where a request to stop does not say."""

    manager: RunManager
    consoles: ConsoleReader
    files: FileCache
    images: ImageCache
    meters: Meter
    metrics: Metrics
    prefetching: Prefetching
    stop_grace_seconds: float = 10.0

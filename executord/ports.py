"""What `runs` needs of the parts that do I/O, as narrow protocols, and the values they exchange.

Every method may raise FaultError, and nothing else on purpose: foreign exceptions are translated
where they enter. Paths are absolute. Times are Unix seconds; sizes are bytes.
"""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from executord.core.run import (
    ChangeKind,
    Environment,
    Image,
    ImagePhase,
    Result,
    Run,
    StageCost,
    Transition,
    UsageSummary,
    Workspace,
)

# -- Progress --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage has come, for people; never journaled. Totals are 0 while unknown."""

    what: str
    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    step: int = 0
    steps: int = 0
    detail: str = ""


OnProgress = Callable[[Progress], None]


# -- The engine ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """`started_at` is None where the engine does not tell; `data_root` is where it keeps layers."""

    version: str
    api_version: str
    storage_driver: str
    cgroup_driver: str
    cgroup_version: int
    live_restore: bool
    architecture: str
    data_root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size_bytes: int = 0
    created_at: float = 0.0
    architecture: str = ""
    layers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpec:
    """`dockerfile` is whole (FROM included); there is no context besides it."""

    tag: str
    dockerfile: str
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStep:
    """One piece of a build: its output, and where in the Dockerfile it comes from (0 unknown)."""

    output: bytes = b""
    step: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount:
    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A container to be made; the engine adds the safe defaults that every run gets.

    `cgroup_parent` is "" for the engine's own; `volume` is mounted at `working_dir`.
    """

    name: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    working_dir: str
    volume: str
    user: str
    network: str
    cpus: float
    memory_bytes: int
    pids_limit: int
    gpus: int = 0
    binds: tuple[BindMount, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    log_max_bytes: int = 0


ContainerState = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """What `inspect` says. `started_at` and `finished_at` are None where it never happened."""

    id: str
    name: str
    state: ContainerState
    pid: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    log_path: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """The container engine. Every call has a deadline; past it the fault is ENGINE_UNAVAILABLE.

    What is there is told by `inspect_*` only; every change is safe to repeat.
    """

    async def facts(self) -> EngineFacts: ...

    # images
    async def inspect_image(self, reference: str) -> ImageFacts | None: ...
    def pull_image(self, reference: str) -> AsyncGenerator[Progress, None]:
        """Ends when the image is here; FaultError IMAGE_NOT_FOUND, IMAGE_DENIED, …
        Closing it early ends the transfer; so do the other two.
        """
        ...

    def build_image(self, spec: BuildSpec) -> AsyncGenerator[BuildStep, None]:
        """Ends when the image is here under its tag; FaultError BUILD_FAILED or the engine's."""
        ...

    def push_image(self, reference: str) -> AsyncGenerator[Progress, None]: ...
    async def tag_image(self, image: str, reference: str) -> None: ...
    async def remove_image(self, reference: str) -> None: ...
    async def list_images(self) -> Sequence[ImageFacts]: ...

    # volumes
    async def create_overlay_volume(
        self,
        name: str,
        *,
        lower: Sequence[Path],
        upper: Path,
        work: Path,
        labels: Mapping[str, str],
    ) -> None:
        """`lower` from the top down. The overlay is mounted when a container starts with it."""
        ...

    async def remove_volume(self, name: str) -> None:
        """Nothing happens where there is none."""
        ...

    async def list_volumes(self, labels: Mapping[str, str]) -> Sequence[str]: ...

    # containers
    async def create_container(self, spec: ContainerSpec) -> str:
        """The container's id. One of the same name and labels is adopted; another's is a fault."""
        ...

    def watch_exit(
        self, container: str
    ) -> AbstractAsyncContextManager[Callable[[], Awaitable[None]]]:
        """Registered on entry. The callable returns when the container has ended *or* when
        nobody knows any more (engine gone, reply cut): inspect afterwards.
        """
        ...

    async def start_container(self, container: str) -> None:
        """FaultError COMMAND_NOT_FOUND, COMMAND_NOT_EXECUTABLE, … when it cannot be started."""
        ...

    async def inspect_container(self, container: str) -> ContainerFacts | None: ...
    async def signal_container(self, container: str, signal: str) -> None:
        """Nothing happens where it does not run."""
        ...

    async def remove_container(self, container: str) -> None:
        """By force; nothing happens where there is none."""
        ...

    async def list_containers(self, labels: Mapping[str, str]) -> Sequence[ContainerFacts]: ...


# -- Files -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    workspace: Workspace
    cost: StageCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    result: Result
    cost: StageCost


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """`path` is relative to the working directory; bytes that are not UTF-8 are surrogates."""

    path: str
    kind: ChangeKind
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What the store keeps under a revision's digest."""

    tree: str
    parent: str = ""
    author: str = ""
    message: str = ""
    time: float = 0.0
    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One thing that the file cache holds. `own_bytes` would be freed if only it went."""

    digest: str
    kind: Literal["snapshot", "blob", "layer"]
    size_bytes: int
    own_bytes: int
    files: int
    last_used: float
    pinned_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesStats:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What goes (or would go), why, and what it really frees."""

    victims: tuple[CacheEntry, ...]
    freed_bytes: int
    dry_run: bool


class Files(Protocol):
    """Project files in and out of runs. All of it may be repeated after a crash."""

    async def prepare(self, run_id: str, revision: str, on_progress: OnProgress) -> Prepared:
        """A fresh workspace over the revision's files ("" starts empty); nothing is half-made."""
        ...

    async def keep(self, run: Run, on_progress: OnProgress) -> Kept:
        """Store what the run changed, as a revision on top of its base, and move the head."""
        ...

    async def changes(self, run: Run) -> Sequence[FileChange]:
        """Changed files of a live run, or of an ended one whose workspace is still here."""
        ...

    async def discard(self, run_id: str, *, keep_workspace: bool) -> None:
        """End the run's lease; remove its volume and, unless kept, its workspace."""
        ...

    async def stats(self) -> FilesStats: ...
    async def entries(self) -> Sequence[CacheEntry]: ...
    async def prune(self, *, dry_run: bool) -> PruneReport: ...
    async def read_revision(self, digest: str) -> Revision: ...


# -- Images ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    image: Image
    costs: tuple[StageCost, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    key: str
    reference: str
    image_id: str
    size_bytes: int
    own_bytes: int
    last_used: float
    used_by: tuple[str, ...]
    made_by: Literal["local", "pulled", "built"]
    made_seconds: float


OnPhase = Callable[[ImagePhase], Awaitable[None]]
OnOutput = Callable[[bytes], Awaitable[None]]


class Images(Protocol):
    async def provide(
        self,
        run_id: str,
        environment: Environment,
        *,
        on_phase: OnPhase,
        on_output: OnOutput,
        on_progress: OnProgress,
    ) -> Provided:
        """The environment's image, found, pulled or built; `on_phase` is told before the latter
        two begin, `on_output` gets the build's output. Cancelling leaves shared work to others.
        """
        ...

    async def release(self, run_id: str) -> None:
        """The run no longer pins its image."""
        ...

    async def entries(self) -> Sequence[ImageEntry]: ...


# -- Console ---------------------------------------------------------------------------------------

Stream = Literal["stdout", "stderr", "build", "gap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleRecord:
    """A piece of output. `offset` counts the run's output bytes before it.

    In a gap `data` is empty and `lost_bytes` says how much is missing (0: nobody knows).
    """

    offset: int
    time: float
    stream: Stream
    data: bytes
    lost_bytes: int = 0

    @property
    def end(self) -> int:
        return self.offset + len(self.data) + self.lost_bytes


class Consoles(Protocol):
    """Console output of every run, kept on disk; the order is that in which it was collected."""

    async def append(self, run_id: str, stream: Stream, data: bytes) -> None:
        """Output that does not come from the container: that of a build."""
        ...

    async def collect(self, run_id: str, container: ContainerFacts) -> None:
        """Begin, or go on after a restart, to keep what the container writes. Idempotent."""
        ...

    async def drain(self, run_id: str) -> None:
        """The container has ended: return when all it wrote is kept, and stop collecting."""
        ...

    async def seal(self, run_id: str) -> None:
        """No more output will come: compress it, and let followers end."""
        ...

    def read(
        self, run_id: str, *, since: int, follow: bool, stream: Stream | None
    ) -> AsyncIterator[ConsoleRecord]:
        """From the first byte at or after `since`; with `follow` until the console is sealed."""
        ...

    async def delete(self, run_id: str) -> None: ...


# -- Usage -----------------------------------------------------------------------------------------


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


# -- Journal ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """`outcome`: a new run, the one that is already here, or a clash of ids."""

    outcome: Literal["new", "same", "conflict"]
    run: Run
    transitions: tuple[Transition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    runs: tuple[Run, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxState:
    pending: int
    oldest_time: float | None
    parked_runs: tuple[str, ...]


class Journal(Protocol):
    """The daemon's memory. What a method has returned survives the death of process and host.

    A journal that cannot be written raises JournalError (a bug or a dying disk): the daemon stops.
    """

    async def accept(self, run: Run, first: Transition, fingerprint: str) -> Accepted:
        """Keep a new run; by id and fingerprint of its content tell a repetition from a clash."""
        ...

    async def commit(self, run: Run, transitions: Sequence[Transition]) -> tuple[Transition, ...]:
        """The run as it is now, and what is to be reported, together or not at all.

        Gives the transitions back with their node-wide `seq`, in order and without gaps.
        """
        ...

    async def run(self, run_id: str) -> Run | None: ...
    async def unfinished_runs(self) -> Sequence[Run]:
        """Every run that is not terminal, or not clean, in order of acceptance."""
        ...

    async def runs(
        self, *, state: str | None, project: str | None, limit: int, cursor: str | None
    ) -> RunPage:
        """Newest first. FaultError is not raised for a bad cursor: ValueError is."""
        ...

    async def transitions_of(self, run_id: str) -> Sequence[Transition]: ...
    async def transitions_after(self, seq: int, limit: int) -> Sequence[Transition]: ...
    async def last_seq(self) -> int: ...

    # small facts that parts keep: (kind, key) -> JSON object
    async def put_fact(self, kind: str, key: str, value: Mapping[str, object]) -> None: ...
    async def delete_fact(self, kind: str, key: str) -> None: ...
    async def fact(self, kind: str, key: str) -> Mapping[str, object] | None: ...
    async def facts(self, kind: str) -> Mapping[str, Mapping[str, object]]: ...

    # outbox: transitions that are not yet delivered, in order
    async def undelivered(self, limit: int) -> Sequence[Transition]:
        """The oldest first, those of parked runs left out."""
        ...

    async def mark_delivered(self, seqs: Sequence[int]) -> None: ...
    async def park(self, run_id: str, why: str) -> None: ...
    async def outbox_state(self) -> OutboxState: ...

    async def forget_before(self, *, runs_before: float, events_before: float) -> Sequence[str]:
        """Drop old ended runs and delivered events; gives the ids of the dropped runs."""
        ...


class JournalError(Exception):
    """The journal cannot be written, or is not one. Nothing may be promised any more."""


class DiskFullError(JournalError):
    """There is no space for the journal: nothing was written, and trying later may work."""


# -- Time ------------------------------------------------------------------------------------------


class Clock(Protocol):
    def now(self) -> float:
        """Unix seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump; they mean nothing across processes."""
        ...

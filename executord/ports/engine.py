"""The container engine."""

from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from executord.ports.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """`data_root` is where the engine keeps layers. A `rootless` one has no rights but its user's,
    in a user namespace of its own.
    """

    version: str
    api_version: str
    storage_driver: str
    cgroup_driver: str
    cgroup_version: int
    live_restore: bool
    architecture: str
    data_root: str
    rootless: bool = False


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
class VolumeMount:
    """A volume that is mounted read-only."""

    volume: str
    target: str


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
    volumes: tuple[VolumeMount, ...] = ()
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

    async def create_bind_volume(
        self, name: str, *, directory: Path, labels: Mapping[str, str]
    ) -> None:
        """`directory` itself, writable. It is mounted when a container starts with it."""
        ...

    async def create_read_only_volume(
        self, name: str, *, lower: Sequence[Path], labels: Mapping[str, str]
    ) -> None:
        """Two directories or more, from the top down; nobody can write what is mounted."""
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

    async def pause_container(self, container: str) -> bool:
        """Its processes stand still when this returns True; False where none are running."""
        ...

    async def unpause_container(self, container: str) -> None:
        """Nothing happens where it does not stand still."""
        ...

    async def remove_container(self, container: str) -> None:
        """By force; nothing happens where there is none."""
        ...

    async def list_containers(self, labels: Mapping[str, str]) -> Sequence[ContainerFacts]: ...

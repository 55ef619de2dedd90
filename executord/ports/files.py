"""Project files in and out of runs, and their cache."""

from collections.abc import (
    Sequence,
)
from dataclasses import dataclass
from typing import Literal, Protocol

from executord.core.run import (
    ChangeKind,
    Result,
    Run,
    StageCost,
    Workspace,
)
from executord.ports.progress import OnProgress


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

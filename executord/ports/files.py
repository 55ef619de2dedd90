"""Project files in and out of runs, and their cache."""

from collections.abc import (
    AsyncIterator,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from executord.core.run import (
    ChangeKind,
    Mount,
    Result,
    Run,
    StageCost,
    Workspace,
)
from executord.ports.cache import CacheReport
from executord.ports.integrity import VerifyReport
from executord.ports.progress import OnProgress, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """`dataset_cost` is that of the mounted revisions, where there are some."""

    workspace: Workspace
    cost: StageCost
    dataset_cost: StageCost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    result: Result
    cost: StageCost


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWorkspace:
    """What an ended run changed, kept on the node alone; `bytes` are those it takes on disk.

    `is_empty`: it is known to have changed nothing.
    """

    run_id: str
    bytes: int
    inodes: int
    made_at: float
    is_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """`path` is relative to the working directory; bytes that are not UTF-8 are surrogates."""

    path: str
    kind: ChangeKind
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What the store keeps under a revision's digest.

    `merged` is the second parent of one that joins two sides; `mid_run` says that the run that
    left it went on.
    """

    tree: str
    parent: str = ""
    author: str = ""
    message: str = ""
    time: float = 0.0
    run: str = ""
    merged: str = ""
    mid_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One thing that the file cache holds. `own_bytes` would be freed if only it went.

    A layer stands on the tree `base`, `depth` layers above a snapshot. Old uses count for less.
    `cost_seconds` is what getting it again would take. One is "held below" by layers on it that
    are in use. `why` says of a victim why it goes.
    """

    digest: str
    kind: Literal["snapshot", "blob", "layer"]
    size_bytes: int
    own_bytes: int
    files: int
    last_used: float
    pinned_by: tuple[str, ...] = ()
    own_inodes: int = 0
    base: str = ""
    depth: int = 0
    uses: float = 0.0
    cost_seconds: float = 0.0
    state: Literal["ready", "in use", "held below"] = "ready"
    why: str = ""


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
    damaged: int = 0
    mended: int = 0
    quarantine_bytes: int = 0
    report: CacheReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What goes (or would go), why, and what it really frees.

    `coming_bytes` were evicted before, and are still being deleted.
    """

    victims: tuple[CacheEntry, ...]
    freed_bytes: int
    dry_run: bool
    freed_inodes: int = 0
    coming_bytes: int = 0


class Files(Protocol):
    """Project files in and out of runs. All of it may be repeated after a crash."""

    async def prepare(
        self, run_id: str, revision: str, on_progress: OnProgress, mounts: Sequence[Mount] = ()
    ) -> Prepared:
        """A fresh workspace over the revision's files ("" starts empty); nothing is half-made.

        Those of `mounts` that name a revision are made ready, and pinned, along with it.
        """
        ...

    async def check_mounted(self, run_id: str, pid: int) -> None:
        """WORKSPACE_FAILED where the container of that process does not see the workspace."""
        ...

    async def keep(self, run: Run, on_progress: OnProgress) -> Kept:
        """Store what the run changed, as a revision on top of its base, and move the head."""
        ...

    async def sync(
        self,
        run: Run,
        *,
        at: float,
        standing_still: AbstractAsyncContextManager[None],
        on_progress: OnProgress,
    ) -> Kept:
        """Store what a run has changed so far, as a revision marked as taken in its middle.

        The run's processes stand still while `standing_still` is held, for as short as can be;
        where leaving it raises, nothing is stored. The cost's `way` is how its files were taken.
        """
        ...

    async def workspaces_kept(self) -> Sequence[KeptWorkspace]:
        """Of ended runs whose changes are on this node alone."""
        ...

    async def changes(self, run: Run) -> Sequence[FileChange]:
        """Changed files of a live run, or of an ended one whose workspace is still here."""
        ...

    async def discard(self, run_id: str, *, keep_workspace: bool) -> None:
        """End the run's lease; remove its volume and, unless kept, its workspace."""
        ...

    async def is_here(self, revision: str) -> bool:
        """Whether a run could begin with it at once. Looks on the node alone."""
        ...

    async def ready_ahead(self, revision: str, holder: str, on_progress: OnProgress) -> StageCost:
        """Make a revision's files ready before anybody needs them, and hold them for `holder`.

        Gives way to all other work, evicts nothing (DISK_FULL where it would have to), and costs
        a run that comes meanwhile nothing: that one joins. What is held is given up when a run
        needs the room.
        """
        ...

    def let_go(self, holder: str) -> None:
        """Nothing is held for it any more."""
        ...

    async def stats(self) -> FilesStats: ...
    async def entries(self) -> Sequence[CacheEntry]: ...
    async def prune(self, *, dry_run: bool) -> PruneReport: ...
    async def read_revision(self, digest: str) -> Revision: ...

    def verify(self, *, repair: bool) -> AsyncIterator[Progress | VerifyReport]:
        """Look at everything that the cache holds; the report comes last. Closing it is giving up.

        With `repair` what is bad is put aside and fetched again; without, nothing is changed, but
        no run gets it before it is mended.
        """
        ...

"""`Files` for the daemon: the parts of this package put together, off the event loop."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from executord.core.run import Run
from executord.files.cache.blobs import Blobs
from executord.files.cache.layout import Layout
from executord.files.cache.objects import Revisions, Trees
from executord.files.cache.snapshot_builds import SnapshotBuilds
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.sweeper import Limits, Sweeper
from executord.files.caretaking import Caretaker
from executord.files.faults import disk
from executord.files.finishing import Finishing
from executord.files.parts import Parts, Tally, Threads
from executord.files.preparing import Preparing
from executord.files.store.bucket import LazyBucket
from executord.files.store.store import Store
from executord.files.store.transfer import Fetcher
from executord.files.system.threads import in_thread
from executord.files.workspace.keep import Keeper
from executord.files.workspace.workspace import Volumes, Workspaces, check_mountable
from executord.ports import (
    CacheEntry,
    FileChange,
    FilesStats,
    Kept,
    OnProgress,
    Prepared,
    PruneReport,
    Revision,
)


class ProjectFiles:
    """See `ports.Files`. `instance` tells this node's volumes from another daemon's (8 hex digits).

    `user` is the numeric user and group of the containers; the watermarks are shares of
    `max_size_bytes`. The store may come later than the daemon: until then calls that need it
    raise STORE_UNAVAILABLE.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        instance: str,
        store_url: str,
        store_options: Mapping[str, str],
        volumes: Volumes,
        user: tuple[int, int],
        max_size_bytes: int,
        low_watermark: float,
        high_watermark: float,
        min_free_bytes: int,
    ) -> None:
        layout = Layout(state_dir)
        blobs = Blobs(layout, user)
        trees = Trees(layout.trees)
        revisions = Revisions(layout.revisions)
        snapshots = Snapshots(layout, blobs, user)
        within = store_url.startswith(f"file://{state_dir}/")
        store = Store(store_url, LazyBucket(store_url, store_options, create=within))
        fetcher = Fetcher(store=store, blobs=blobs, trees=trees, revisions=revisions)
        sweeper = Sweeper(
            layout=layout,
            limits=Limits(
                max_size_bytes=max_size_bytes,
                low_watermark=low_watermark,
                high_watermark=high_watermark,
                min_free_bytes=min_free_bytes,
            ),
            blobs=blobs,
            snapshots=snapshots,
            trees=trees,
            revisions=revisions,
        )
        threads = Threads()
        self._wake = asyncio.Event()
        self._parts = parts = Parts(
            layout=layout,
            blobs=blobs,
            trees=trees,
            revisions=revisions,
            snapshots=snapshots,
            workspaces=Workspaces(layout, user, instance),
            sweeper=sweeper,
            store=store,
            fetcher=fetcher,
            keeper=Keeper(store=store, fetcher=fetcher, blobs=blobs, local_trees=trees),
            builds=SnapshotBuilds(
                fetcher=fetcher,
                blobs=blobs,
                snapshots=snapshots,
                sweeper=sweeper,
                threads=threads.long,
            ),
            volumes=volumes,
            threads=threads,
            tally=Tally(),
            wake=self._wake.set,
            leaving=threading.Event(),
        )
        self._preparing = Preparing(parts)
        self._finishing = Finishing(parts)
        self._caretaker = Caretaker(parts, self._wake)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what is there. Raises FaultError where the directory cannot be used."""
        check_mountable(self._parts.layout.root)
        await in_thread(self._parts.threads.quick, self._open)
        self._tasks.add(
            asyncio.create_task(self._caretaker.keep_sweeping(), name="files caretaker")
        )

    async def close(self) -> None:
        """Workspaces, leases and the cache stay for the next start."""
        self._parts.leaving.set()
        self._wake.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._parts.builds.close()
        await asyncio.to_thread(self._parts.threads.shut_down)

    def _open(self) -> None:
        parts = self._parts
        with disk("open the file cache"):
            parts.layout.make()
            for leftover in list(parts.layout.tmp.iterdir()):
                parts.layout.throw_away(leftover)
            parts.blobs.load()
            for lease in parts.workspaces.leases():
                if not lease.kept:
                    parts.snapshots.pin(lease.tree, lease.run)

    # -- runs --------------------------------------------------------------------------------------

    async def prepare(self, run_id: str, revision: str, on_progress: OnProgress) -> Prepared:
        return await self._preparing.prepare(run_id, revision, on_progress)

    async def keep(self, run: Run, on_progress: OnProgress) -> Kept:
        return await self._finishing.keep(run, on_progress)

    async def changes(self, run: Run) -> Sequence[FileChange]:
        return await self._finishing.changes(run)

    async def discard(self, run_id: str, *, keep_workspace: bool) -> None:
        await self._preparing.discard(run_id, keep_workspace=keep_workspace)

    async def read_revision(self, digest: str) -> Revision:
        """Raises REVISION_NOT_FOUND, also for what is no digest, and the store's faults."""
        return await self._preparing.read_revision(digest)

    # -- the cache ---------------------------------------------------------------------------------

    async def stats(self) -> FilesStats:
        return await self._caretaker.stats()

    async def entries(self) -> Sequence[CacheEntry]:
        return await self._caretaker.entries()

    async def prune(self, *, dry_run: bool) -> PruneReport:
        """Everything that no run needs."""
        return await self._caretaker.prune(dry_run=dry_run)

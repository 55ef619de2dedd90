"""`Files` for the daemon: the parts of this package put together, off the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

from executord.core.cache_trace import Use
from executord.core.run import Mount, Run, StageCost
from executord.files.ahead import FilesAhead
from executord.files.cache.blob_check import BlobCheck
from executord.files.cache.blobs import Blobs
from executord.files.cache.damage_control import DamageControl
from executord.files.cache.inspection import Inspection
from executord.files.cache.integrity import Beliefs, Integrity, Verify
from executord.files.cache.layout import Layout
from executord.files.cache.objects import Revisions, Trees
from executord.files.cache.scrub import Scrub
from executord.files.cache.snapshot_builds import SnapshotBuilds
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.spare_room import SpareRoom
from executord.files.cache.sweeper import Limits
from executord.files.cache.sweeping import make_sweeper
from executord.files.caretaking import Caretaker
from executord.files.faults import disk
from executord.files.finishing import Finishing
from executord.files.parts import Parts, Tally, Threads
from executord.files.preparing import Preparing
from executord.files.store.bucket import LazyBucket
from executord.files.store.store import Store
from executord.files.store.transfer import Fetcher
from executord.files.system.threads import in_thread
from executord.files.verifying import Verifying
from executord.files.workspace.families import settle
from executord.files.workspace.keep import Keeper
from executord.files.workspace.modes.choice import Modes
from executord.files.workspace.modes.filling import Filling
from executord.files.workspace.modes.probe import Probe
from executord.files.workspace.workspace import Volumes, Workspaces, check_mountable
from executord.ports import (
    CacheEntry,
    FileChange,
    FilesStats,
    Kept,
    KeptWorkspace,
    OnProgress,
    Prepared,
    Progress,
    PruneReport,
    Revision,
    VerifyReport,
    WorkspaceMode,
    WorkspaceModes,
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
        max_inodes: int = 0,
        min_free_inodes: int = 0,
        mode: WorkspaceMode | Literal["auto"] = "auto",
        writable: Sequence[str] = (),
        engine_is_rootless: bool = False,
        verify: Verify = "first_use",
        scrub_bytes_per_second: int = 0,
        store_patience_seconds: float = 300.0,
    ) -> None:
        layout = Layout(state_dir)
        blobs = Blobs(layout, user)
        modes = Modes(wanted=None if mode == "auto" else mode, owner=user, writable=writable)
        self._probe = Probe(layout, run_user=user[0], rootless=engine_is_rootless)
        trees = Trees(layout.trees)
        revisions = Revisions(layout.revisions)
        snapshots = Snapshots(layout, blobs, user)
        within = store_url.startswith(f"file://{state_dir}/")
        store = Store(
            store_url,
            LazyBucket(store_url, store_options, create=within),
            packs_home=layout.pack_indexes,
            known_stores=layout.known_stores,
        )
        fetcher = Fetcher(store=store, blobs=blobs, trees=trees, revisions=revisions)
        sweeper = make_sweeper(
            layout=layout,
            limits=Limits(
                max_size_bytes=max_size_bytes,
                low_watermark=low_watermark,
                high_watermark=high_watermark,
                min_free_bytes=min_free_bytes,
                max_inodes=max_inodes,
                min_free_inodes=min_free_inodes,
            ),
            blobs=blobs,
            snapshots=snapshots,
            trees=trees,
            revisions=revisions,
        )
        spare = SpareRoom(sweeper, snapshots)
        control = DamageControl(layout=layout, blobs=blobs, snapshots=snapshots)
        blob_check = BlobCheck(blobs, control)
        beliefs = Beliefs(blobs, snapshots, control)
        threads = Threads()
        builds = SnapshotBuilds(
            fetcher=fetcher,
            blobs=blobs,
            trees=trees,
            snapshots=snapshots,
            sweeper=sweeper,
            spare=spare,
            threads=threads.long,
            ahead_threads=threads.ahead,
        )
        integrity = Integrity(
            owner=user,
            blobs=blobs,
            snapshots=snapshots,
            fetcher=fetcher,
            builds=builds,
            blob_check=blob_check,
            control=control,
            beliefs=beliefs,
            threads=threads.long,
            ahead_threads=threads.ahead,
            verify=verify,
        )
        inspection = Inspection(
            blobs=blobs,
            trees=trees,
            revisions=revisions,
            snapshots=snapshots,
            blob_check=blob_check,
            control=control,
            beliefs=beliefs,
            integrity=integrity,
        )
        self._beliefs = beliefs
        self._wake = asyncio.Event()
        self._parts = parts = Parts(
            layout=layout,
            blobs=blobs,
            trees=trees,
            revisions=revisions,
            snapshots=snapshots,
            workspaces=Workspaces(layout, modes, instance),
            filling=Filling(
                cache=layout.root,
                fetcher=fetcher,
                blobs=blobs,
                sweeper=sweeper,
                owner=user,
                check=integrity.before_placing,
            ),
            sweeper=sweeper,
            spare=spare,
            store=store,
            fetcher=fetcher,
            keeper=Keeper(
                store=store,
                fetcher=fetcher,
                blobs=blobs,
                local_trees=trees,
                patience_seconds=store_patience_seconds,
                later=threads.long.submit,
            ),
            builds=builds,
            control=control,
            integrity=integrity,
            inspection=inspection,
            volumes=volumes,
            threads=threads,
            tally=Tally(),
            wake=self._wake.set,
            leaving=threading.Event(),
        )
        self._preparing = Preparing(parts, patience_seconds=store_patience_seconds)
        self._finishing = Finishing(parts)
        self._ahead = FilesAhead(parts, self._preparing.earlier_trees)
        self._caretaker = Caretaker(parts, self._wake)
        self._verifying = Verifying(parts)
        self._scrub = Scrub(
            inspection=inspection,
            integrity=integrity,
            blobs=blobs,
            bytes_per_second=scrub_bytes_per_second,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def workspace_modes(self) -> WorkspaceModes:
        """How runs get their working directories, and why not otherwise. Known once open."""
        return self._parts.workspaces.modes.report

    # -- life --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what is there. Raises FaultError where the directory cannot be used."""
        check_mountable(self._parts.layout.root)
        await in_thread(self._parts.threads.quick, self._open)
        self._tasks.add(
            asyncio.create_task(self._caretaker.keep_sweeping(), name="files caretaker")
        )
        self._tasks.add(asyncio.create_task(self._scrub.run(), name="files scrub"))

    async def close(self) -> None:
        """Workspaces, leases and the cache stay for the next start."""
        self._parts.leaving.set()
        self._wake.set()
        self._scrub.leave()
        await self._verifying.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._parts.integrity.close()
        await self._parts.builds.close()
        await asyncio.to_thread(self._finishing.close)
        await asyncio.to_thread(self._parts.fetcher.close)
        await self._caretaker.close()
        await asyncio.to_thread(self._parts.threads.shut_down)

    def _open(self) -> None:
        parts = self._parts
        with disk("open the file cache"):
            parts.layout.make()
            for folder in {parts.layout.tmp, parts.layout.runs_tmp}:
                for leftover in list(folder.iterdir()):
                    parts.layout.throw_away(leftover)
            parts.workspaces.modes.choose(self._probe)
            mode = parts.workspaces.modes.chosen.name
            if mode == "hardlink":
                parts.blobs.protect()
            parts.sweeper.accounting.open()
            parts.snapshots.open()
            for lease in parts.workspaces.leases():
                if not lease.kept:
                    for tree in (lease.tree, *lease.dataset_trees):
                        parts.snapshots.pin(tree, lease.run)
            settle(parts.layout, parts.blobs, parts.snapshots, mode)
            self._beliefs.open()

    # -- runs --------------------------------------------------------------------------------------

    async def prepare(
        self, run_id: str, revision: str, on_progress: OnProgress, mounts: Sequence[Mount] = ()
    ) -> Prepared:
        self._ahead.hurry((revision, *(mount.revision for mount in mounts)))
        with self._parts.sweeper.trash.way.taken():
            prepared = await self._preparing.prepare(run_id, revision, on_progress, mounts)
        self._parts.sweeper.uses.tell(prepared.workspace.tree, prepared.cost)
        return prepared

    async def check_mounted(self, run_id: str, pid: int) -> None:
        await in_thread(
            self._parts.threads.quick, self._parts.workspaces.check_mounted, run_id, pid
        )

    async def keep(self, run: Run, on_progress: OnProgress) -> Kept:
        return await self._finishing.keep(run, on_progress)

    async def sync(
        self,
        run: Run,
        *,
        at: float,
        standing_still: AbstractAsyncContextManager[None],
        on_progress: OnProgress,
    ) -> Kept:
        return await self._finishing.sync(
            run, at=at, standing_still=standing_still, on_progress=on_progress
        )

    async def workspaces_kept(self) -> Sequence[KeptWorkspace]:
        return await self._finishing.workspaces_kept()

    async def changes(self, run: Run) -> Sequence[FileChange]:
        return await self._finishing.changes(run)

    async def discard(self, run_id: str, *, keep_workspace: bool) -> None:
        await self._preparing.discard(run_id, keep_workspace=keep_workspace)

    async def read_revision(self, digest: str) -> Revision:
        """Raises REVISION_NOT_FOUND, also for what is no digest, and the store's faults."""
        return await self._preparing.read_revision(digest)

    # -- ahead of runs -----------------------------------------------------------------------------

    async def is_here(self, revision: str) -> bool:
        return await self._ahead.is_here(revision)

    async def ready_ahead(self, revision: str, holder: str, on_progress: OnProgress) -> StageCost:
        return await self._ahead.ready(revision, holder, on_progress)

    def let_go(self, holder: str) -> None:
        self._ahead.let_go(holder)

    # -- the cache ---------------------------------------------------------------------------------

    async def stats(self) -> FilesStats:
        return await self._caretaker.stats()

    async def entries(self) -> Sequence[CacheEntry]:
        return await self._caretaker.entries()

    async def trace(self) -> Sequence[Use]:
        """What runs asked the cache for, as far as it is recorded; the oldest first."""
        return await self._caretaker.trace()

    async def prune(self, *, dry_run: bool) -> PruneReport:
        """Everything that no run needs."""
        return await self._caretaker.prune(dry_run=dry_run)

    def verify(self, *, repair: bool) -> AsyncIterator[Progress | VerifyReport]:
        return self._verifying.verify(repair=repair)

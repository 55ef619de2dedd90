"""`Files` for the daemon: the parts of this package put together, off the event loop.

Preparing: revision → tree → snapshot (here, or built) → workspace → volume.
Finishing: upper directory → blobs, trees, revision → head.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import structlog

from executord.core.reasons import FaultError, Reason
from executord.core.run import Run, Stage, StageCost, Workspace
from executord.files import disk as disks
from executord.files.blobs import Blobs
from executord.files.bucket import LazyBucket
from executord.files.diff import diff
from executord.files.digests import is_digest
from executord.files.directories import MovedError
from executord.files.faults import disk, fault
from executord.files.keep import Keeper, check_can_keep
from executord.files.layout import Layout
from executord.files.objects import Revisions, Trees
from executord.files.snapshot_builds import SnapshotBuilds
from executord.files.snapshots import About, Snapshots
from executord.files.store import Store
from executord.files.sweeper import Limits, Sweeper
from executord.files.threads import in_thread, in_thread_until
from executord.files.transfer import Fetcher
from executord.files.trees import EMPTY_TREE
from executord.files.workspace import Volumes, Workspaces, check_mountable, check_run_id
from executord.ports import (
    CacheEntry,
    FileChange,
    FilesStats,
    Kept,
    OnProgress,
    Prepared,
    Progress,
    PruneReport,
    Revision,
)

log = structlog.get_logger(__name__)

_LONG_THREADS = 4
_QUICK_THREADS = 2
_SWEEP_SECONDS = 60.0
_LIVE_TRIES = 3
_EVERYTHING = 1 << 62


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
        self._layout = layout = Layout(state_dir)
        self._volumes = volumes
        self._max_size_bytes = max_size_bytes
        self._blobs = Blobs(layout, user)
        self._trees = Trees(layout.trees)
        self._revisions = Revisions(layout.revisions)
        self._snapshots = Snapshots(layout, self._blobs, user)
        self._workspaces = Workspaces(layout, user, instance)
        self._sweeper = Sweeper(
            layout=layout,
            limits=Limits(
                max_size_bytes=max_size_bytes,
                low_watermark=low_watermark,
                high_watermark=high_watermark,
                min_free_bytes=min_free_bytes,
            ),
            blobs=self._blobs,
            snapshots=self._snapshots,
            trees=self._trees,
            revisions=self._revisions,
        )
        within = store_url.startswith(f"file://{state_dir}/")
        store = Store(store_url, LazyBucket(store_url, store_options, create=within))
        self._fetcher = Fetcher(
            store=store, blobs=self._blobs, trees=self._trees, revisions=self._revisions
        )
        self._keeper = Keeper(
            store=store, fetcher=self._fetcher, blobs=self._blobs, local_trees=self._trees
        )
        self._long = ThreadPoolExecutor(_LONG_THREADS, thread_name_prefix="files-long")
        self._quick = ThreadPoolExecutor(_QUICK_THREADS, thread_name_prefix="files-quick")
        self._sweeping = ThreadPoolExecutor(1, thread_name_prefix="files-sweep")
        self._builds = SnapshotBuilds(
            fetcher=self._fetcher,
            blobs=self._blobs,
            snapshots=self._snapshots,
            sweeper=self._sweeper,
            threads=self._long,
        )
        self._hits = [0, 0]
        self._misses = [0, 0]
        self._wake = asyncio.Event()
        self._leaving = threading.Event()
        self._sweep_task: asyncio.Task[None] | None = None

    # -- life --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what is there. Raises FaultError where the directory cannot be used."""
        check_mountable(self._layout.root)
        await in_thread(self._quick, self._open)
        self._sweep_task = asyncio.create_task(self._keep_sweeping(), name="files sweeper")

    async def close(self) -> None:
        """Workspaces, leases and the cache stay for the next start."""
        self._leaving.set()
        self._wake.set()
        if self._sweep_task is not None:
            await asyncio.wait((self._sweep_task,))
        await self._builds.close()
        for threads in (self._long, self._quick, self._sweeping):
            await asyncio.to_thread(threads.shutdown)

    def _open(self) -> None:
        with disk("open the file cache"):
            self._layout.make()
            for leftover in list(self._layout.tmp.iterdir()):
                self._layout.throw_away(leftover)
            self._blobs.load()
            for lease in self._workspaces.leases():
                if not lease.kept:
                    self._snapshots.pin(lease.tree, lease.run)

    # -- preparing ---------------------------------------------------------------------------------

    async def prepare(self, run_id: str, revision: str, on_progress: OnProgress) -> Prepared:
        check_run_id(run_id)
        began = time.monotonic()
        if await in_thread(self._quick, self._workspaces.exists, run_id):
            await self.discard(run_id, keep_workspace=False)
        tree = EMPTY_TREE
        if revision:
            tree = (await self.read_revision(revision)).tree
        self._snapshots.pin(tree, run_id)
        cost = await self._make_snapshot(tree, on_progress)
        workspace = Workspace(
            volume=self._workspaces.volume_name(run_id),
            tree=tree,
            base_revision=revision,
            way=cost.way,
        )
        await in_thread(self._quick, self._make_workspace, run_id, workspace)
        await self._volumes.create_overlay_volume(
            workspace.volume,
            lower=(self._snapshots.lower(tree),),
            upper=self._workspaces.upper(run_id),
            work=self._workspaces.work(run_id),
            labels=self._workspaces.labels(run_id),
        )
        return Prepared(workspace=workspace, cost=replace(cost, seconds=time.monotonic() - began))

    async def _make_snapshot(self, tree: str, on_progress: OnProgress) -> StageCost:
        about = await in_thread(self._quick, self._find_snapshot, tree)
        if about is not None:
            way = "empty" if tree == EMPTY_TREE else "snapshot"
            return self._cost(about, way)
        made, mine = await self._builds.build(tree, _relay(on_progress))
        self._wake.set()
        if tree == EMPTY_TREE:
            return self._cost(made.about, "empty")
        if not mine:
            return self._cost(made.about, "shared")
        return self._cost(made.about, "farm", made.files_fetched, made.bytes_fetched)

    def _find_snapshot(self, tree: str) -> About | None:
        with disk("look for the snapshot"):
            about = self._snapshots.find(tree)
            if about is not None:
                self._snapshots.touch(tree)
            return about

    def _make_workspace(self, run_id: str, workspace: Workspace) -> None:
        with disk("make the run's working directory"):
            self._workspaces.make(run_id, workspace)

    def _cost(self, about: About, way: str, files: int = 0, size: int = 0) -> StageCost:
        """Equal files are fetched once, so what was fetched may be less than what is missing."""
        cached_files, cached_bytes = max(0, about.files - files), max(0, about.bytes - size)
        for tally, (number, amount) in (
            (self._hits, (cached_files, cached_bytes)),
            (self._misses, (files, size)),
        ):
            tally[0] += number
            tally[1] += amount
        return StageCost(
            stage=Stage.PREPARE,
            seconds=0.0,
            files_from_cache=cached_files,
            bytes_from_cache=cached_bytes,
            files_fetched=files,
            bytes_fetched=size,
            way=way,
        )

    # -- finishing ---------------------------------------------------------------------------------

    async def keep(self, run: Run, on_progress: OnProgress) -> Kept:
        began = time.monotonic()
        check_can_keep(run)
        upper = self._workspaces.upper(run.id)
        cancelled = threading.Event()
        relay = _relay(on_progress)
        finished = await in_thread_until(
            self._long, cancelled, lambda: self._keeper.keep(run, upper, relay, cancelled)
        )
        self._wake.set()
        cost = StageCost(
            stage=Stage.FINISH,
            seconds=time.monotonic() - began,
            files_sent=finished.files_sent,
            bytes_sent=finished.bytes_sent,
            way=finished.result.head,
        )
        return Kept(result=finished.result, cost=cost)

    async def changes(self, run: Run) -> Sequence[FileChange]:
        if run.workspace is None:
            return ()
        return await in_thread(self._long, self._changes, run)

    def _changes(self, run: Run) -> Sequence[FileChange]:
        assert run.workspace is not None
        base = run.workspace.tree
        if run.result is not None and run.result.revision:
            after = self._fetcher.revision(run.result.revision).tree
            return sorted(diff(self._fetcher, base, after), key=lambda change: change.path)
        if not self._workspaces.exists(run.id):
            return ()
        for _ in range(_LIVE_TRIES):
            with contextlib.suppress(MovedError):
                return self._keeper.changes(self._workspaces.upper(run.id), base)
        raise fault(
            Reason.WORKSPACE_FAILED, f"Run {run.id} moves its directories too quickly to be listed."
        )

    async def discard(self, run_id: str, *, keep_workspace: bool) -> None:
        check_run_id(run_id)
        if await in_thread(self._quick, self._workspaces.exists, run_id):
            await self._volumes.remove_volume(self._workspaces.volume_name(run_id))
            await in_thread(self._quick, self._end_lease, run_id, keep_workspace=keep_workspace)
        self._snapshots.unpin(run_id)
        self._wake.set()

    def _end_lease(self, run_id: str, *, keep_workspace: bool) -> None:
        with disk(f"remove the working directory of {run_id}"):
            if keep_workspace:
                self._workspaces.keep_without_lease(run_id)
            else:
                self._workspaces.remove(run_id)

    # -- the cache ---------------------------------------------------------------------------------

    async def read_revision(self, digest: str) -> Revision:
        """Raises REVISION_NOT_FOUND, also for what is no digest, and the store's faults."""
        if not is_digest(digest):
            raise fault(Reason.REVISION_NOT_FOUND, f"{digest[:80]!r} is not a revision's digest.")
        return await in_thread(self._quick, self._fetcher.revision, digest)

    async def stats(self) -> FilesStats:
        return await in_thread(self._quick, self._stats)

    def _stats(self) -> FilesStats:
        with disk("look at the file cache"):
            return FilesStats(
                blobs=self._blobs.count,
                blob_bytes=self._blobs.bytes,
                snapshots=len(self._snapshots.all()),
                workspaces=self._workspaces.count(),
                hits_files=self._hits[0],
                hits_bytes=self._hits[1],
                misses_files=self._misses[0],
                misses_bytes=self._misses[1],
                evicted_bytes=self._sweeper.evicted_bytes,
                max_bytes=self._max_size_bytes,
                disk_free_bytes=disks.free_bytes(self._layout.root),
            )

    async def entries(self) -> Sequence[CacheEntry]:
        return await in_thread(self._sweeping, self._entries)

    def _entries(self) -> Sequence[CacheEntry]:
        with disk("look at the file cache"):
            return self._sweeper.entries()

    async def prune(self, *, dry_run: bool) -> PruneReport:
        """Everything that no run needs."""
        report = await in_thread(self._sweeping, self._prune, dry_run=dry_run)
        self._wake.set()
        return report

    def _prune(self, *, dry_run: bool) -> PruneReport:
        with disk("prune the file cache"):
            sweeper = self._sweeper
            plan = sweeper.plan(_EVERYTHING) if dry_run else sweeper.sweep(_EVERYTHING)
        return PruneReport(victims=plan.victims, freed_bytes=plan.freed_bytes, dry_run=dry_run)

    async def _keep_sweeping(self) -> None:
        """Until `close`: never cancelled, since 3.11's wait_for may swallow a cancellation."""
        while not self._leaving.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _SWEEP_SECONDS)
            self._wake.clear()
            try:
                await in_thread(self._sweeping, self._sweep)
            except FaultError as error:
                log.warning("cache.sweep_failed", detail=error.fault.detail)
            except Exception:  # a bug here must not let the disk fill up
                log.exception("cache.sweep_crashed")

    def _sweep(self) -> None:
        with disk("tidy the file cache"):
            wanted = self._sweeper.wanted_bytes()
            if wanted:
                self._sweeper.sweep(wanted)
            self._sweeper.empty_trash(self._leaving)


def _relay(on_progress: OnProgress) -> OnProgress:
    """From a thread into the loop; progress that comes after its end is dropped."""
    loop = asyncio.get_running_loop()

    def tell(progress: Progress) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(on_progress, progress)

    return tell

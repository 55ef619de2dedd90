"""Preparing: revision → tree → snapshot (here, or built) → workspace → volume; and its undoing."""

import time
from dataclasses import replace

from executord.core.reasons import Reason
from executord.core.run import Stage, StageCost, Workspace
from executord.files.cache.snapshots import About
from executord.files.faults import disk, fault
from executord.files.model.digests import is_digest
from executord.files.model.trees import EMPTY_TREE
from executord.files.parts import Parts
from executord.files.progress import relay
from executord.files.system.threads import in_thread
from executord.files.workspace.workspace import check_run_id
from executord.ports import OnProgress, Prepared, Revision


class Preparing:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._workspaces = parts.workspaces
        self._snapshots = parts.snapshots
        self._quick = parts.threads.quick

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
        await self._parts.volumes.create_overlay_volume(
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
        made, mine = await self._parts.builds.build(tree, relay(on_progress))
        self._parts.wake()
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
        tally = self._parts.tally
        tally.hits_files += cached_files
        tally.hits_bytes += cached_bytes
        tally.misses_files += files
        tally.misses_bytes += size
        return StageCost(
            stage=Stage.PREPARE,
            seconds=0.0,
            files_from_cache=cached_files,
            bytes_from_cache=cached_bytes,
            files_fetched=files,
            bytes_fetched=size,
            way=way,
        )

    async def discard(self, run_id: str, *, keep_workspace: bool) -> None:
        check_run_id(run_id)
        if await in_thread(self._quick, self._workspaces.exists, run_id):
            await self._parts.volumes.remove_volume(self._workspaces.volume_name(run_id))
            await in_thread(self._quick, self._end_lease, run_id, keep_workspace=keep_workspace)
        self._snapshots.unpin(run_id)
        self._parts.wake()

    def _end_lease(self, run_id: str, *, keep_workspace: bool) -> None:
        with disk(f"remove the working directory of {run_id}"):
            if keep_workspace:
                self._workspaces.keep_without_lease(run_id)
            else:
                self._workspaces.remove(run_id)

    async def read_revision(self, digest: str) -> Revision:
        """Raises REVISION_NOT_FOUND, also for what is no digest, and the store's faults."""
        if not is_digest(digest):
            raise fault(Reason.REVISION_NOT_FOUND, f"{digest[:80]!r} is not a revision's digest.")
        return await in_thread(self._quick, self._parts.fetcher.revision, digest)

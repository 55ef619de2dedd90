"""Preparing: revision → tree → snapshot (here, or built) → workspace → volume; and its undoing."""

import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from executord.core.reasons import Reason
from executord.core.run import Mount, Stage, StageCost, Workspace
from executord.files.cache.promises import Promise
from executord.files.cache.second_try import again_if_full
from executord.files.cache.snapshots import About
from executord.files.datasets import Datasets
from executord.files.faults import disk, fault
from executord.files.model.digests import is_digest
from executord.files.model.trees import EMPTY_TREE
from executord.files.parts import Parts
from executord.files.progress import relay
from executord.files.store.patience import until_store_answers
from executord.files.system.threads import in_thread, in_thread_until
from executord.files.workspace.modes.filling import Filled
from executord.files.workspace.modes.full import FullDirectory
from executord.files.workspace.modes.mode import Volume
from executord.files.workspace.modes.overlay import Overlay
from executord.files.workspace.workspace import check_run_id
from executord.ports import OnProgress, Prepared, Revision

_EARLIER_REVISIONS = 32

_T = TypeVar("_T")


class Preparing:
    """`patience_seconds`: how long a store may give no answer."""

    def __init__(self, parts: Parts, *, patience_seconds: float = 0.0) -> None:
        self._parts = parts
        self._patience_seconds = patience_seconds
        self._workspaces = parts.workspaces
        self._snapshots = parts.snapshots
        self._quick = parts.threads.quick
        self._datasets = Datasets(parts, self.read_revision, self._make_snapshot)

    async def prepare(
        self, run_id: str, revision: str, on_progress: OnProgress, mounts: Sequence[Mount] = ()
    ) -> Prepared:
        check_run_id(run_id)
        began = time.monotonic()
        if await in_thread(self._quick, self._workspaces.exists, run_id):
            await self.discard(run_id, keep_workspace=False)
        tree = EMPTY_TREE
        if revision:
            found = await self._patiently(on_progress, lambda: self.read_revision(revision))
            tree = found.tree
        mode = self._workspaces.modes.chosen
        cost = StageCost(stage=Stage.PREPARE, seconds=0.0, way=mode.name)
        if mode.on_snapshot:
            self._snapshots.pin(tree, run_id)
            cost = await self._patiently(
                on_progress, lambda: self._make_snapshot(tree, on_progress, revision)
            )
        datasets = await self._patiently(
            on_progress, lambda: self._datasets.ready(run_id, mounts, on_progress)
        )
        began += datasets.seconds
        workspace = Workspace(
            volume=self._workspaces.volume_name(run_id),
            tree=tree,
            base_revision=revision,
            way=cost.way,
            mode=mode.name,
            datasets=datasets.datasets,
        )
        if isinstance(mode, Overlay):
            await in_thread(self._quick, self._make_workspace, run_id, workspace, mode)
        else:
            cost = await self._patiently(
                on_progress, lambda: self._make_directory(run_id, workspace, mode, on_progress)
            )
        await mode.create_volume(
            self._parts.volumes,
            self._workspaces.home(run_id),
            Volume(
                name=workspace.volume,
                labels=self._workspaces.labels(run_id),
                lower=self._snapshots.lowers(tree, run_id) if mode.on_snapshot else (),
            ),
        )
        await self._datasets.make_volumes(run_id, datasets)
        return Prepared(
            workspace=workspace,
            cost=replace(cost, seconds=time.monotonic() - began),
            dataset_cost=datasets.cost,
        )

    async def _patiently(self, on_progress: OnProgress, ask: Callable[[], Awaitable[_T]]) -> _T:
        return await until_store_answers(
            ask,
            seconds=self._patience_seconds,
            on_progress=on_progress,
            progress=lambda: self._parts.blobs.bytes,
        )

    async def _make_snapshot(
        self, tree: str, on_progress: OnProgress, revision: str = ""
    ) -> StageCost:
        about = await in_thread(self._quick, self._find_snapshot, tree)
        if about is not None:
            mended = await self._parts.integrity.before_use(tree, relay(on_progress))
            if mended is not None:
                return self._cost(
                    mended.about, mended.way, mended.files_fetched, mended.bytes_fetched
                )
            way = "empty" if tree == EMPTY_TREE else "snapshot"
            return self._cost(about, way)
        likely = await in_thread(self._quick, self.earlier_trees, revision)
        made, mine = await self._parts.builds.build(tree, relay(on_progress), likely=likely)
        self._parts.wake()
        if tree == EMPTY_TREE:
            return self._cost(made.about, "empty")
        # What it links to and stands on may be of an earlier daemon's making.
        made = await self._parts.integrity.before_use(tree, relay(on_progress)) or made
        if not mine:
            return self._cost(made.about, "shared", why=made.why)
        fetched = made.files_fetched, made.bytes_fetched
        return self._cost(made.about, made.way, *fetched, why=made.why)

    def earlier_trees(self, revision: str) -> list[str]:
        """Of the revisions that it comes from, as far as this node knows them, the last first."""
        found: list[str] = []
        known = self._parts.revisions.get(revision) if revision else None
        while known is not None and known.parent and len(found) < _EARLIER_REVISIONS:
            known = self._parts.revisions.get(known.parent)
            if known is not None:
                found.append(known.tree)
        return found

    def _find_snapshot(self, tree: str) -> About | None:
        with disk("look for the snapshot"):
            about = self._snapshots.find(tree)
            if about is not None:
                self._snapshots.touch(tree)
            return about

    def _make_workspace(self, run_id: str, workspace: Workspace, overlay: Overlay) -> None:
        with disk("make the run's working directory"):
            self._workspaces.make(run_id, workspace, overlay.fill)

    async def _make_directory(
        self, run_id: str, workspace: Workspace, mode: FullDirectory, on_progress: OnProgress
    ) -> StageCost:
        """All of the tree's files, in a directory of the run's own."""
        cancelled = threading.Event()
        tell = relay(on_progress)

        def make_once(promise: Promise) -> Filled:
            def fill(home: Path) -> Filled:
                return self._parts.filling.fill(
                    home, workspace.tree, mode.placer, tell, cancelled, promise=promise
                )

            with disk("make the run's working directory"):
                return self._workspaces.make(run_id, workspace, fill)

        def make() -> Filled:
            return again_if_full(
                make_once, self._parts.sweeper, self._parts.spare, lambda: not cancelled.is_set()
            )

        try:
            filled = await in_thread_until(self._parts.threads.long, cancelled, make)
        finally:
            self._parts.wake()
        return self._cost(
            filled,
            mode.name,
            filled.files_fetched,
            filled.bytes_fetched,
            why=self._workspaces.modes.why_not_better,
        )

    def _cost(
        self, about: About | Filled, way: str, files: int = 0, size: int = 0, *, why: str = ""
    ) -> StageCost:
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
            why=why,
        )

    async def discard(self, run_id: str, *, keep_workspace: bool) -> None:
        check_run_id(run_id)
        if await in_thread(self._quick, self._workspaces.exists, run_id):
            await self._parts.volumes.remove_volume(self._workspaces.volume_name(run_id))
            lease = await in_thread(self._quick, self._workspaces.lease, run_id)
            for volume in lease.dataset_volumes if lease else ():
                await self._parts.volumes.remove_volume(volume)
            await in_thread(self._quick, self._end_lease, run_id, keep_workspace=keep_workspace)
        self._snapshots.unpin(run_id)
        self._parts.builds.flattener.look()
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

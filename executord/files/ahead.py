"""Making revisions ready before a run needs them: the builds that runs join, out of the way."""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Sequence

from executord.core.reasons import Reason
from executord.core.run import Stage, StageCost
from executord.files.cache.blobs_ahead import BlobsAhead, Gathered
from executord.files.cache.snapshot_builds import Made
from executord.files.cache.snapshots import About
from executord.files.faults import disk, fault
from executord.files.model.digests import is_digest
from executord.files.parts import AHEAD_THREADS, Parts
from executord.files.progress import relay
from executord.files.system.idle_work import IdleWork
from executord.files.system.threads import in_thread, in_thread_until
from executord.ports import OnProgress, Revision


class FilesAhead:
    """As many builds at a time as there are threads for them: none waits behind another where a
    run could come to wait for it. `earlier_trees` of a revision may be near its own.

    Where runs get directories of their own, which are made of blobs, it is blobs that are fetched.
    """

    def __init__(self, parts: Parts, earlier_trees: Callable[[str], Sequence[str]]) -> None:
        self._parts = parts
        self._earlier_trees = earlier_trees
        self._threads = asyncio.Semaphore(AHEAD_THREADS)
        self._blobs = BlobsAhead(
            fetcher=parts.fetcher,
            blobs=parts.blobs,
            trees=parts.trees,
            check_room=parts.spare.check,
            check=parts.integrity.before_placing,
        )
        self._gathering: set[tuple[str, IdleWork]] = set()

    async def is_here(self, revision: str) -> bool:
        if not is_digest(revision):
            return False
        return await in_thread(self._parts.threads.ahead, self._is_here, revision)

    def _is_here(self, revision: str) -> bool:
        with disk("look for the revision's files"):
            known = self._parts.revisions.get(revision)
            if known is None:
                return False
            if self._needs_snapshots:
                return self._parts.snapshots.find(known.tree) is not None
            return self._blobs.are_here(known.tree, self._parts.leaving)

    @property
    def _needs_snapshots(self) -> bool:
        return self._parts.workspaces.modes.chosen.on_snapshot

    def hurry(self, revisions: Collection[str]) -> None:
        """A run comes that needs these: what is fetched of them gives way to nobody any more."""
        for revision, work in tuple(self._gathering):
            if revision in revisions:
                work.hurry()

    async def ready(self, revision: str, holder: str, on_progress: OnProgress) -> StageCost:
        """See `ports.Files.ready_ahead`."""
        if not is_digest(revision):
            raise fault(Reason.REVISION_NOT_FOUND, f"{revision[:80]!r} is not a revision's digest.")
        began = time.monotonic()
        async with self._threads:
            tree = (await in_thread(self._parts.threads.ahead, self._revision, revision)).tree
            self._parts.spare.hold(tree, holder)
            try:
                return await self._ready(tree, revision, began, on_progress)
            except BaseException:
                self._parts.spare.let_go(holder)
                raise

    def _revision(self, digest: str) -> Revision:
        with IdleWork().in_this_thread():
            return self._parts.fetcher.revision(digest)

    async def _ready(
        self, tree: str, revision: str, began: float, on_progress: OnProgress
    ) -> StageCost:
        if not self._needs_snapshots:
            gathered = await self._gather(tree, revision, on_progress)
            fetched = gathered.files_fetched, gathered.bytes_fetched
            return _cost(gathered, time.monotonic() - began, way="blobs", fetched=fetched)
        about = await in_thread(self._parts.threads.quick, self._find, tree)
        if about is not None:
            mended = await self._check(tree, on_progress)
            if mended is None:
                return _cost(about, time.monotonic() - began, way="snapshot")
            fetched = mended.files_fetched, mended.bytes_fetched
            seconds = time.monotonic() - began
            return _cost(mended.about, seconds, way=mended.way, fetched=fetched)
        likely = await in_thread(self._parts.threads.quick, self._earlier_trees, revision)
        made, mine = await self._parts.builds.build(
            tree, relay(on_progress), ahead=True, likely=likely
        )
        self._parts.wake()
        # What it links to and stands on may be of an earlier daemon's making.
        made = await self._check(tree, on_progress) or made
        seconds = time.monotonic() - began
        if not mine:
            return _cost(made.about, seconds, way="shared")
        fetched = made.files_fetched, made.bytes_fetched
        return _cost(made.about, seconds, way=made.way, fetched=fetched)

    async def _check(self, tree: str, on_progress: OnProgress) -> Made | None:
        return await self._parts.integrity.before_use(tree, relay(on_progress), ahead=True)

    async def _gather(self, tree: str, revision: str, on_progress: OnProgress) -> Gathered:
        cancelled, work, tell = threading.Event(), IdleWork(), relay(on_progress)

        def gather() -> Gathered:
            with work.in_this_thread(), disk("fetch the revision's files"):
                return self._blobs.gather(tree, tell, cancelled)

        self._gathering.add((revision, work))
        try:
            return await in_thread_until(self._parts.threads.ahead, cancelled, gather)
        finally:
            self._gathering.discard((revision, work))
            self._parts.wake()

    def _find(self, tree: str) -> About | None:
        with disk("look for the snapshot"):
            return self._parts.snapshots.find(tree)

    def let_go(self, holder: str) -> None:
        self._parts.spare.let_go(holder)


def _cost(
    about: About | Gathered, seconds: float, *, way: str, fetched: tuple[int, int] = (0, 0)
) -> StageCost:
    files, size = fetched
    return StageCost(
        stage=Stage.PREPARE,
        seconds=seconds,
        files_from_cache=max(0, about.files - files),
        bytes_from_cache=max(0, about.bytes - size),
        files_fetched=files,
        bytes_fetched=size,
        way=way,
    )

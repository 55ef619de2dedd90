"""What is done for snapshots and layers when nobody waits: they become safe from a power cut, long
chains become whole snapshots, and layers go that a snapshot has replaced.

It gives way at the disk, and is given up as soon as a run has something built.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from executord.core.reasons import FaultError
from executord.files.cache.blobs import BlobKey
from executord.files.cache.grounds import Ground
from executord.files.cache.objects import Trees
from executord.files.cache.tree_build import BuildTools, TreeBuild
from executord.files.faults import CancelledWorkError, disk
from executord.files.model.trees import Tree
from executord.files.progress import Counter
from executord.files.system import disk as disks
from executord.files.system.idle_work import IdleWork
from executord.files.system.threads import in_thread
from executord.ports import Progress

log = structlog.get_logger(__name__)

FLATTEN_DEPTH = 4
_IDLE_SECONDS = 3.0
_BYTES_A_DIRECTORY = 8192


class NotHereError(Exception):
    """It would have to be fetched, for which nobody asked."""


class _LocalOnly:
    """See `tree_build.Source`."""

    def __init__(self, local: Trees) -> None:
        self._local = local

    def trees(self, wanted: Sequence[str]) -> dict[str, Tree]:
        found = {}
        for digest in wanted:
            tree = self._local.get(digest)
            if tree is None:
                raise NotHereError(digest)
            found[digest] = tree
        return found

    def blobs(
        self,
        sizes: Mapping[BlobKey, int],
        counter: Counter,  # noqa: ARG002 - as the store's
        cancelled: threading.Event,  # noqa: ARG002
    ) -> None:
        raise NotHereError(next(iter(sizes)).digest)


class Flattener:
    """`check_room` raises FaultError where so many bytes and inodes would be too much."""

    def __init__(
        self,
        tools: BuildTools,
        check_room: Callable[[int, int], None],
        *,
        flatten_depth: int = FLATTEN_DEPTH,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._tools = replace(tools, source=_LocalOnly(tools.trees), make_room=check_room)
        self._snapshots = tools.snapshots
        self._check_room = check_room
        self._flatten_depth = min(flatten_depth, max(1, tools.snapshots.most_layers))
        self.idle_seconds = idle_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files-flatten")
        self._cancelled = threading.Event()
        self._closing = asyncio.Event()
        self._busy = 0
        self._busy_until = 0.0
        self._task: asyncio.Task[None] | None = None
        self._cannot: set[Ground] = set()

    # -- from the loop -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Somebody waits for a build: whatever is under way is given up."""
        self._busy += 1
        self._cancelled.set()

    def end(self) -> None:
        self._busy -= 1
        self.look()

    def look(self) -> None:
        """There may be something to do, when all has been quiet for a while."""
        self._busy_until = time.monotonic() + self.idle_seconds
        if not self._closing.is_set() and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._work(), name="files flattener")

    async def close(self) -> None:
        self._closing.set()
        self._cancelled.set()
        if self._task is not None:
            await asyncio.wait((self._task,))
        await asyncio.to_thread(self._thread.shutdown)

    async def _work(self) -> None:
        while await self._is_quiet():
            self._cancelled = threading.Event()
            try:
                if not await in_thread(self._thread, self.do_one_thing):
                    return
            except Exception:  # a bug here is no run's
                log.exception("flattener.crashed")
                return

    async def _is_quiet(self) -> bool:
        """Waits until it is; False when the daemon leaves."""
        while not self._closing.is_set():
            left = self._busy_until - time.monotonic()
            if not self._busy and left <= 0:
                return True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._closing.wait(), left if left > 0 else self.idle_seconds
                )
        return False

    # -- in the thread -----------------------------------------------------------------------------

    def do_one_thing(self) -> bool:
        """False where there is nothing (more) to do. Blocks."""
        with IdleWork().in_this_thread():
            try:
                with disk("look after the file cache"):
                    self._make_durable()
                    self._drop_replaced()
                    ground = self._next()
                if ground is None:
                    return False
                self._flatten(ground)
            except FaultError as error:
                log.warning("flattener.failed", detail=error.fault.detail)
                return False
        return True

    def _make_durable(self) -> None:
        grounds = self._snapshots.not_durable()
        if grounds and not self._cancelled.is_set():
            disks.sync_filesystem(self._snapshots.layout.root)
            self._snapshots.mark_durable(grounds)

    def _drop_replaced(self) -> None:
        for ground in self._snapshots.grounds():
            if ground.kind == "layer" and self._snapshots.find(ground.tree, "snapshot") is not None:
                self._snapshots.throw_away(ground)

    def _next(self) -> Ground | None:
        """The last used of the layers that are deep and have no snapshot yet."""
        for ground, about in self._snapshots.by_last_use():
            if (
                about.depth >= self._flatten_depth
                and ground not in self._cannot
                and self._snapshots.find(ground.tree, "snapshot") is None
            ):
                return ground
        return None

    def _flatten(self, ground: Ground) -> None:
        about = self._snapshots.find(ground.tree, ground.kind)
        if about is None:
            return
        build = TreeBuild(self._tools, ground.tree, _nobody, self._cancelled)
        try:
            self._check_room(about.directories * _BYTES_A_DIRECTORY, about.directories)
            made = build.run(whole=True)
        except CancelledWorkError:
            return
        except NotHereError as error:
            self._cannot.add(ground)
            log.info("layer.not_flattened", tree=ground.tree, absent=str(error))
        except FaultError as error:
            self._cannot.add(ground)
            log.info("layer.not_flattened", tree=ground.tree, detail=error.fault.detail)
        else:
            log.info(
                "layer.flattened",
                tree=ground.tree,
                depth=about.depth,
                seconds=made.about.made_in_seconds,
            )
            self._drop_replaced()


def _nobody(_: Progress) -> None:
    """Is told how far it is."""

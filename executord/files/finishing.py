"""Finishing: upper directory → blobs, trees, revision → head; and what a run changed so far."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager

from executord.core.reasons import Reason
from executord.core.run import Run, Stage, StageCost
from executord.files.faults import disk, fault
from executord.files.model.diff import diff
from executord.files.parts import Parts
from executord.files.progress import relay
from executord.files.system.directories import MovedError
from executord.files.system.threads import in_thread, in_thread_until
from executord.files.workspace.keep import Finished, TakenLive, check_can_keep
from executord.files.workspace.kept import kept_workspaces
from executord.ports import FileChange, Kept, KeptWorkspace, OnProgress

_LIVE_TRIES = 3
_COPIES_AT_ONCE = 2


class Finishing:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._workspaces = parts.workspaces
        self._long = parts.threads.long
        self._copiers = ThreadPoolExecutor(_COPIES_AT_ONCE, thread_name_prefix="files-copy")
        self._copying = asyncio.Semaphore(_COPIES_AT_ONCE)

    async def keep(self, run: Run, on_progress: OnProgress) -> Kept:
        began = time.monotonic()
        check_can_keep(run)
        changed, home = self._workspaces.changed(run.id), self._workspaces.home(run.id)
        cancelled = threading.Event()
        tell = relay(on_progress)
        finished = await in_thread_until(
            self._long,
            cancelled,
            lambda: self._parts.keeper.keep(run, changed, home, tell, cancelled),
        )
        self._parts.wake()
        return _kept(finished, time.monotonic() - began, finished.result.head)

    async def sync(
        self,
        run: Run,
        *,
        at: float,
        standing_still: AbstractAsyncContextManager[None],
        on_progress: OnProgress,
    ) -> Kept:
        """See `ports.Files`. Who has to wait for a thread does so before anything stands still."""
        began = time.monotonic()
        check_can_keep(run)
        changed, home = self._workspaces.changed(run.id), self._workspaces.home(run.id)
        keeper, tell = self._parts.keeper, relay(on_progress)
        aside = self._parts.layout.new_tmp()
        cancelled = threading.Event()
        live: TakenLive | None = None
        try:
            async with self._copying, standing_still:
                live = await in_thread_until(
                    self._copiers,
                    cancelled,
                    lambda: keeper.take_live(run, changed, aside, tell, cancelled),
                )
            taken = live
            finished = await in_thread_until(
                self._long,
                cancelled,
                lambda: keeper.store_live(
                    run, taken, home, at=at, on_progress=tell, cancelled=cancelled
                ),
            )
        finally:
            if live is not None:
                live.close()
            self._parts.layout.throw_away(aside)
            self._parts.wake()
        return _kept(finished, time.monotonic() - began, live.way)

    async def workspaces_kept(self) -> Sequence[KeptWorkspace]:
        return await in_thread(self._long, self._kept_workspaces)

    def _kept_workspaces(self) -> Sequence[KeptWorkspace]:
        with disk("look at kept workspaces"):
            return kept_workspaces(self._workspaces)

    def close(self) -> None:
        """Waits for copies under way. Blocks."""
        self._copiers.shutdown()

    async def changes(self, run: Run) -> Sequence[FileChange]:
        if run.workspace is None:
            return ()
        return await in_thread(self._long, self._changes, run)

    def _changes(self, run: Run) -> Sequence[FileChange]:
        assert run.workspace is not None
        base = run.workspace.tree
        fetcher = self._parts.fetcher
        if run.result is not None and run.result.revision:
            after = fetcher.revision(run.result.revision).tree
            return sorted(diff(fetcher, base, after), key=lambda change: change.path)
        if not self._workspaces.exists(run.id):
            return ()
        for _ in range(_LIVE_TRIES):
            with contextlib.suppress(MovedError):
                return self._parts.keeper.changes(self._workspaces.changed(run.id), base)
        raise fault(
            Reason.WORKSPACE_FAILED, f"Run {run.id} moves its directories too quickly to be listed."
        )


def _kept(finished: Finished, seconds: float, way: str) -> Kept:
    cost = StageCost(
        stage=Stage.FINISH,
        seconds=seconds,
        files_sent=finished.files_sent,
        bytes_sent=finished.bytes_sent,
        way=way,
    )
    return Kept(result=finished.result, cost=cost)

"""Finishing: upper directory → blobs, trees, revision → head; and what a run changed so far."""

import contextlib
import threading
import time
from collections.abc import Sequence

from executord.core.reasons import Reason
from executord.core.run import Run, Stage, StageCost
from executord.files.faults import fault
from executord.files.model.diff import diff
from executord.files.parts import Parts
from executord.files.progress import relay
from executord.files.system.directories import MovedError
from executord.files.system.threads import in_thread, in_thread_until
from executord.files.workspace.keep import check_can_keep
from executord.ports import FileChange, Kept, OnProgress

_LIVE_TRIES = 3


class Finishing:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._workspaces = parts.workspaces
        self._long = parts.threads.long

    async def keep(self, run: Run, on_progress: OnProgress) -> Kept:
        began = time.monotonic()
        check_can_keep(run)
        upper = self._workspaces.upper(run.id)
        cancelled = threading.Event()
        tell = relay(on_progress)
        finished = await in_thread_until(
            self._long, cancelled, lambda: self._parts.keeper.keep(run, upper, tell, cancelled)
        )
        self._parts.wake()
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
        fetcher = self._parts.fetcher
        if run.result is not None and run.result.revision:
            after = fetcher.revision(run.result.revision).tree
            return sorted(diff(fetcher, base, after), key=lambda change: change.path)
        if not self._workspaces.exists(run.id):
            return ()
        for _ in range(_LIVE_TRIES):
            with contextlib.suppress(MovedError):
                return self._parts.keeper.changes(self._workspaces.upper(run.id), base)
        raise fault(
            Reason.WORKSPACE_FAILED, f"Run {run.id} moves its directories too quickly to be listed."
        )

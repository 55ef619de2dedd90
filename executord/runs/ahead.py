"""The next queued runs' files and images, made ready while others execute.

Nothing of it belongs to a run: no state, no journal, no failure. What is not ready when a run's
turn comes is made ready then, in Preparing, which joins whatever is under way.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from executord.core.reasons import FaultError
from executord.core.run import Environment, ImagePhase, PullPolicy, Run
from executord.core.states import State
from executord.ports import Files, Images, Progress

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 2.0
_AGAIN_SECONDS = 30.0
_BEFORE_RUNNING = {
    State.QUEUED,
    State.SCHEDULED,
    State.PREPARING,
    State.BUILDING,
    State.PULLING,
}


class Queue(Protocol):
    def next_queued(self, most: int) -> Sequence[Run]:
        """Those whose turn comes next, in order."""
        ...

    def live_run(self, run_id: str) -> Run | None:
        """None where it is over and clean."""
        ...


@dataclass(slots=True, eq=False)
class _Readying:
    """One run's preparation ahead; `again_at` is when one that gave up is tried once more."""

    task: "asyncio.Task[None]"
    progress: Progress = field(default_factory=lambda: Progress(what="ahead"))
    ready: bool = False
    again_at: float | None = None


async def ignore_phase(_: ImagePhase) -> None:
    """There is no run whose state it would be."""


async def ignore_output(_: bytes) -> None:
    """There is no run whose console it would belong to."""


class PrepareAhead:
    """`most` runs at a time. `why_not` tells what stands against it now, or ""; it must not block.

    `run` is its life; whoever cancels it has everything under way given up.
    """

    def __init__(
        self,
        *,
        files: Files,
        images: Images,
        queue: Queue,
        most: int,
        why_not: Callable[[], str],
        look_seconds: float = _LOOK_SECONDS,
        again_seconds: float = _AGAIN_SECONDS,
    ) -> None:
        self._files = files
        self._images = images
        self._queue = queue
        self._most = most
        self._why_not = why_not
        self._look_seconds = look_seconds
        self._again_seconds = again_seconds
        self._readying: dict[str, _Readying] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """The queue has changed."""
        self._wake.set()

    def progress_of(self, run_id: str) -> Mapping[str, Progress]:
        """For a queued run; its `detail` ends as "ready"."""
        found = self._readying.get(run_id)
        return {"ahead": found.progress} if found else {}

    async def run(self) -> None:
        try:
            while True:
                await self._wait()
                await self._look()
        finally:
            for run_id in list(self._readying):
                await self._end(run_id)

    async def _wait(self) -> None:
        """For a change of the queue; while something is under way or held, not for long."""
        busy = bool(self._readying)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._look_seconds if busy else None):
                await self._wake.wait()
        self._wake.clear()

    async def _look(self) -> None:
        wanted = {run.id: run for run in self._queue.next_queued(self._most)}
        for run_id in [run_id for run_id in self._readying if run_id not in wanted]:
            run = self._queue.live_run(run_id)
            if run is None or run.stop is not None or run.state not in _BEFORE_RUNNING:
                await self._end(run_id)
        why_not = self._why_not()
        if why_not:
            await self._pause(why_not)
            return
        now = asyncio.get_running_loop().time()
        for run_id, run in wanted.items():
            known = self._readying.get(run_id)
            if known is None or (known.again_at is not None and known.again_at <= now):
                self._begin(run)

    async def _pause(self, why_not: str) -> None:
        """What is under way is given up, what is ready stays."""
        for run_id, readying in list(self._readying.items()):
            if not readying.task.done():
                log.info("ahead.paused", run_id=run_id, why=why_not)
                await _cancelled(readying.task)
                readying.progress = Progress(what="ahead", detail=f"paused: {why_not}")
                readying.again_at = 0.0

    def _begin(self, run: Run) -> None:
        task = asyncio.create_task(self._make_ready(run), name=f"ahead:{run.id}")
        self._readying[run.id] = _Readying(task)

    async def _end(self, run_id: str) -> None:
        readying = self._readying.pop(run_id)
        await _cancelled(readying.task)
        self._files.let_go(_holder(run_id))
        with contextlib.suppress(FaultError):
            await self._images.release(_holder(run_id))

    async def _make_ready(self, run: Run) -> None:
        readying = self._readying[run.id]

        def show(progress: Progress) -> None:
            readying.progress = replace(progress, what="ahead", detail=progress.what)

        try:
            await self._make_all_ready(run, show)
        except FaultError as error:
            readying.again_at = asyncio.get_running_loop().time() + self._again_seconds
            readying.progress = Progress(what="ahead", detail=f"not now: {error.fault.detail}")
            log.info("ahead.dropped", run_id=run.id, why=error.fault.detail)
        except Exception:  # nothing of this may ever reach the run
            log.exception("ahead.crashed", run_id=run.id)
            readying.progress = Progress(what="ahead", detail="not ahead: see the daemon's log")
        else:
            readying.ready = True
            readying.progress = replace(readying.progress, detail="ready")
            log.info("ahead.ready", run_id=run.id)

    async def _make_all_ready(self, run: Run, show: Callable[[Progress], None]) -> None:
        """One after the other: this must not take more of the node than it has to."""
        assignment = run.assignment
        revisions = [assignment.revision, *(mount.revision for mount in assignment.mounts)]
        for revision in dict.fromkeys(revisions):
            if revision:
                await self._files.ready_ahead(revision, _holder(run.id), show)
        environment = assignment.environment
        if environment.pull is not PullPolicy.NEVER:
            await self._images.provide(
                _holder(run.id),
                fetched_if_missing(environment),
                on_phase=ignore_phase,
                on_output=ignore_output,
                on_progress=show,
            )


def fetched_if_missing(environment: Environment) -> Environment:
    """Whether an image that is here has a newer one in its registry is asked in the run's turn."""
    return replace(environment, pull=PullPolicy.MISSING)


def _holder(run_id: str) -> str:
    """No run's id holds a colon: what is held ahead is never mixed up with what a run holds."""
    return f"ahead:{run_id}"


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait((task,))

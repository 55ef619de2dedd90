"""Storing a run's files apart from its end: while it goes on, or long after, when an end could not.

While a run goes on its processes stand still for as long as its changes are copied, and never
longer: whatever happens then, they are resumed, if not by this daemon then by the next one when it
takes the run up. An end waits for a sync under way, so that it builds upon what that has stored.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from executord.core.lifecycle import step
from executord.core.messages import Event, FilesKeptLater, Synced
from executord.core.reasons import FaultError, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Result, Results, Run, Sync
from executord.core.states import State
from executord.ports import Progress
from executord.runs.actor import RunActor
from executord.runs.container import container_of
from executord.runs.context import Tools
from executord.runs.patience import until_engine_answers

log = structlog.get_logger(__name__)

_LEAVING_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What a sync came to. `paused_seconds` is 0 for a run that had ended (`mid_run` is False)."""

    run_id: str
    at: float
    result: Result
    mid_run: bool
    paused_seconds: float = 0.0
    way: str = ""


class Runs(Protocol):
    """The part of the manager that is needed here."""

    async def run(self, run_id: str) -> Run:
        """RefusedError UNKNOWN_RUN."""
        ...

    def actor_of(self, run_id: str) -> RunActor | None:
        """None for a run that nobody works on."""
        ...


@dataclass(slots=True)
class _Stop:
    """How long a container stood still."""

    seconds: float = 0.0


class Syncs:
    """Owns every sync under way: one whose asker went away is brought to its end."""

    def __init__(self, *, tools: Tools, runs: Runs) -> None:
        self._tools = tools
        self._runs = runs
        self._tasks: set[asyncio.Task[SyncReport]] = set()
        self._leaving = False

    async def sync(self, run_id: str, *, discard: bool = False) -> SyncReport:
        """One at a time a run: who comes second waits for the first.

        `discard` gives up what an ended run has kept. RefusedError: UNKNOWN_RUN, NOTHING_TO_SYNC,
        SHUTTING_DOWN; FaultError of the store, the disk or the engine.
        """
        if self._leaving:
            raise _leaving()
        task = asyncio.create_task(self._in_turn(run_id, discard=discard), name=f"{run_id}:sync")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not self._leaving:
                raise
            raise _leaving() from None

    async def close(self) -> None:
        """The daemon leaves; no container stays behind standing still, if the engine answers."""
        self._leaving = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[SyncReport]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever asked, or nobody is left to be told

    async def _in_turn(self, run_id: str, *, discard: bool) -> SyncReport:
        await self._runs.run(run_id)
        async with self._tools.syncing.of(run_id):
            run = await self._runs.run(run_id)
            if run.keeps_workspace and run.clean and self._runs.actor_of(run_id) is None:
                return await self._later(run, discard=discard)
            if discard or run.state is not State.RUNNING or not _has_started(run):
                raise RefusedError(Refusal.NOTHING_TO_SYNC, _why_not(run, discard=discard))
            return await self._now(run)

    # -- a run that has ended ----------------------------------------------------------------------

    async def _later(self, run: Run, *, discard: bool) -> SyncReport:
        tools = self._tools
        result = Result(head="not_kept")
        if not discard:
            try:
                result = (await tools.files.keep(run, _nobody_looks)).result
            except FaultError as error:
                raise _with(error, "The run's files are still kept on this node", run.id) from error
        at = tools.clock.now()
        await self._record(run.id, FilesKeptLater(at=at, result=result))
        await tools.files.discard(run.id, keep_workspace=False)
        log.info("run.kept_later", run_id=run.id, discarded=discard, revision=result.revision)
        return SyncReport(run_id=run.id, at=at, result=result, mid_run=False)

    # -- a run that goes on ------------------------------------------------------------------------

    async def _now(self, run: Run) -> SyncReport:
        at, stop = self._tools.clock.now(), _Stop()
        container = container_of(run, self._tools.rules)
        try:
            kept = await self._tools.files.sync(
                run,
                at=at,
                standing_still=self._standing_still(run.id, container, stop),
                on_progress=_nobody_looks,
            )
        except FaultError as error:
            raise _with(error, "The run goes on, untouched", run.id) from error
        sync = Sync(at=at, result=kept.result, paused_seconds=stop.seconds, way=kept.cost.way)
        await self._record(run.id, Synced(at=self._tools.clock.now(), sync=sync))
        log.info(
            "run.synced",
            run_id=run.id,
            revision=kept.result.revision,
            head=kept.result.head,
            paused_seconds=round(stop.seconds, 6),
            way=kept.cost.way,
        )
        return SyncReport(
            run_id=run.id,
            at=at,
            result=kept.result,
            mid_run=True,
            paused_seconds=stop.seconds,
            way=kept.cost.way,
        )

    @asynccontextmanager
    async def _standing_still(
        self, run_id: str, container: str, stop: _Stop
    ) -> AsyncIterator[None]:
        """Refuses where the processes did not stand still from its beginning to its end."""
        engine, clock = self._tools.engine, self._tools.clock
        began = clock.monotonic()
        try:
            if not await engine.pause_container(container):
                raise RefusedError(
                    Refusal.NOTHING_TO_SYNC, f"The command of run {run_id} has ended meanwhile."
                )
            yield
            facts = await engine.inspect_container(container)
        finally:
            await self._resume(container)
            stop.seconds = clock.monotonic() - began
        if facts is None or facts.state != "paused":
            raise RefusedError(
                Refusal.NOTHING_TO_SYNC,
                f"The command of run {run_id} went on, or was ended, while its files were copied; "
                "its end stores them.",
            )

    async def _resume(self, container: str) -> None:
        """Not given up because the asker is, and only for a while longer when the daemon leaves."""
        resuming = asyncio.create_task(
            until_engine_answers(lambda: self._tools.engine.unpause_container(container)),
            name=f"resume:{container}",
        )
        try:
            await asyncio.shield(resuming)
        except asyncio.CancelledError:
            await asyncio.wait([resuming], timeout=_LEAVING_SECONDS)
            if not resuming.done():
                log.warning("run.left_paused", container=container)
                resuming.cancel()
            raise

    # -- the record --------------------------------------------------------------------------------

    async def _record(self, run_id: str, event: Event) -> None:
        """By the run's actor; where it has none (any more), nobody else writes to the run."""
        actor = self._runs.actor_of(run_id)
        if actor is not None:
            told = actor.post(event)
            await asyncio.wait([told])
            if not told.cancelled():
                told.result()
                return
        run = await self._runs.run(run_id)
        await self._tools.journal.commit(step(run, event).run, ())


def _has_started(run: Run) -> bool:
    return run.container is not None and run.container.started_at is not None


def _why_not(run: Run, *, discard: bool) -> str:
    if run.keeps_workspace:
        return f"Run {run.id} is still being tidied up; ask again in a moment."
    if run.is_over:
        return f"Run {run.id} has ended ({run.state}), and nothing of it waits to be stored."
    if discard:
        return f"Run {run.id} goes on ({run.state}); only what an ended run kept can be given up."
    if run.state in (State.FINISHING, State.STOP_REQUESTED, State.STOPPING):
        if run.stop is not None and run.stop.results is Results.DISCARD:
            return (
                f"Run {run.id} is being stopped ({run.state}) by an order that gives up what it "
                "has changed, so nothing is stored."
            )
        return f"Run {run.id} is at its end ({run.state}); what it keeps is stored there."
    return f"Run {run.id} has no command running yet ({run.state})."


def _with(error: FaultError, state: str, run_id: str) -> FaultError:
    """Where the store is away: what that means for the run, and what to do."""
    fault = error.fault
    if fault.reason is not Reason.STORE_UNAVAILABLE:
        return FaultError(fault)
    more = f"{state}; repeat `executorctl sync {run_id}` when the store is back."
    return FaultError(replace(fault, detail=f"{fault.detail} {more}".strip()))


def _leaving() -> RefusedError:
    return RefusedError(Refusal.SHUTTING_DOWN, "The daemon is leaving; ask again when it is back.")


def _nobody_looks(_: Progress) -> None:
    """Whoever asked waits for the end."""

"""One run's life: take an event, decide, journal, adopt, carry out. In this order, always.

The actor is the only one that changes its run. Cancelling its task means that the daemon leaves:
the run goes on without it, and the next daemon takes it up. A stop is an event.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from executord.core import messages as m
from executord.core.lifecycle import ImpossibleEventError, step
from executord.core.reasons import Fault, FaultError, Reason
from executord.core.run import Run, Stage, Transition
from executord.ports import DiskFullError, JournalError, Progress
from executord.runs.context import RunContext, Tools
from executord.runs.stages.clean_up import clean_up
from executord.runs.stages.end_container import end_container
from executord.runs.stages.execute import execute
from executord.runs.stages.keep_files import keep_files
from executord.runs.stages.prepare import prepare
from executord.runs.stages.provide_image import provide_image

_DISK_FULL_PAUSE_SECONDS = 1.0

OnChange = Callable[[Run, Sequence[Transition]], None]


@dataclass(frozen=True, slots=True)
class _Letter:
    event: m.Event
    durable: asyncio.Future[Run]


class RunActor:
    """Owns `run` from the time it is accepted, or taken up again, until it is over and clean."""

    def __init__(self, run: Run, *, tools: Tools, on_change: OnChange) -> None:
        self.run = run
        self.progress: dict[str, Progress] = {}
        self._tools = tools
        self._on_change = on_change
        self._letters: asyncio.Queue[_Letter] = asyncio.Queue()
        self._workers: dict[Stage, asyncio.Task[None]] = {}
        self._helpers: set[asyncio.Task[None]] = set()
        self._cancelled: set[Stage] = set()
        self._log = structlog.get_logger(__name__).bind(run_id=run.id)
        self._context = RunContext(run=lambda: self.run, report=self._report)

    def post(self, event: m.Event) -> "asyncio.Future[Run]":
        """The future gives the run as it is once the event is durable."""
        durable: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self._letters.put_nowait(_Letter(event, durable))
        return durable

    async def live(self) -> None:
        """Until the run is over and clean. Raises JournalError when nothing can be promised."""
        try:
            while not (self.run.clean and self._letters.empty()):
                letter = await self._letters.get()
                await self._handle(letter)
        finally:
            await self._leave()

    async def _report(self, event: m.Event) -> None:
        await asyncio.shield(self.post(event))

    def _note_progress(self, stage: Stage, progress: Progress) -> None:
        self.progress[stage] = progress

    async def _handle(self, letter: _Letter) -> None:
        try:
            outcome = step(self.run, letter.event)
        except ImpossibleEventError as error:
            self._log.exception("run.impossible_event")
            outcome = step(self.run, self._crash(error))
        committed = await self._commit(outcome.run, outcome.transitions)
        self.run = outcome.run
        for transition in committed:
            self._tell(transition)
        self._on_change(self.run, committed)
        for command in outcome.commands:
            self._carry_out(command)
        if not letter.durable.done():
            letter.durable.set_result(self.run)

    async def _commit(self, run: Run, transitions: Sequence[Transition]) -> tuple[Transition, ...]:
        if run is self.run:
            return ()
        while True:
            try:
                return await self._tools.journal.commit(run, transitions)
            except DiskFullError:
                self._log.error("journal.disk_full", again_in_seconds=_DISK_FULL_PAUSE_SECONDS)
            await asyncio.sleep(_DISK_FULL_PAUSE_SECONDS)

    def _tell(self, transition: Transition) -> None:
        self._log.info(
            "run.transition",
            seq=transition.seq,
            number=transition.number,
            from_state=transition.from_state,
            to_state=transition.to_state,
            reason=transition.reason,
        )

    # -- commands ----------------------------------------------------------------------------------

    def _carry_out(self, command: m.Command) -> None:
        now = self._tools.clock.now()
        match command:
            case m.BeginWork():
                self.post(m.Begun(at=now))
            case m.BeginStop():
                self.post(m.StopBegun(at=now))
            case m.PrepareFiles():
                self._work(Stage.PREPARE, prepare(self._in(Stage.PREPARE), self._tools))
            case m.ProvideImage():
                self._work(Stage.IMAGE, provide_image(self._in(Stage.IMAGE), self._tools))
            case m.Execute():
                self._work(Stage.RUN, execute(self._context, self._tools))
            case m.KeepFiles(keep=keep):
                context = self._in(Stage.FINISH)
                self._work(Stage.FINISH, keep_files(context, self._tools, keep=keep))
            case m.CleanUp(keep_workspace=keep):
                self._begin_clean_up(keep_workspace=keep)
            case m.EndContainer(grace_seconds=grace):
                self._help(end_container(self._context, self._tools, grace))
            case m.CancelStages(stages=stages):
                self._cancel(stages)
            case _:
                raise TypeError(f"no such command: {command}")

    def _in(self, stage: Stage) -> RunContext:
        return replace(self._context, on_progress=partial(self._note_progress, stage))

    def _work(self, stage: Stage, work: Coroutine[Any, Any, m.StageEvent]) -> None:
        self._cancelled.discard(stage)
        self._workers[stage] = asyncio.create_task(
            self._ends_in_one_event(stage, work), name=f"{self.run.id}:{stage}"
        )

    async def _ends_in_one_event(
        self, stage: Stage, work: Coroutine[Any, Any, m.StageEvent]
    ) -> None:
        attempt = self.run.attempt
        event: m.Event
        try:
            event = await work
        except FaultError as error:
            event = m.StageFailed(
                at=self._tools.clock.now(), attempt=attempt, stage=stage, fault=error.fault
            )
        except asyncio.CancelledError:
            if stage not in self._cancelled:
                raise
            event = m.StageCancelled(at=self._tools.clock.now(), attempt=attempt, stage=stage)
        except JournalError:
            self._log.exception("run.journal_failed", stage=stage)
            return
        except Exception as error:  # noqa: BLE001 - a bug costs one run, not the daemon
            self._log.exception("run.stage_crashed", stage=stage)
            event = self._crash(error)
        self.progress.pop(stage, None)
        self.post(event)

    def _help(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"{self.run.id}:end")
        self._helpers.add(task)
        task.add_done_callback(self._helper_done)

    def _helper_done(self, task: asyncio.Task[None]) -> None:
        self._helpers.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, FaultError):
            self._log.warning("run.end_refused", detail=error.fault.detail)
        elif error is not None:
            self.post(self._crash(error))

    def _cancel(self, stages: frozenset[Stage]) -> None:
        for stage in sorted(stages):
            self._cancelled.add(stage)
            worker = self._workers.get(stage)
            if worker is None or worker.done():
                self._post_cancelled_unless_told(stage, worker)
            else:
                worker.cancel()

    def _post_cancelled_unless_told(self, stage: Stage, worker: asyncio.Task[None] | None) -> None:
        """After a restart nobody works on a stage that is to be cancelled: say so in its place."""
        if worker is None:
            self.post(
                m.StageCancelled(at=self._tools.clock.now(), attempt=self.run.attempt, stage=stage)
            )

    def _begin_clean_up(self, *, keep_workspace: bool) -> None:
        for worker in self._workers.values():
            worker.cancel()
        self._work(
            Stage.CLEAN_UP, clean_up(self._context, self._tools, keep_workspace=keep_workspace)
        )

    def _crash(self, error: BaseException) -> m.Crashed:
        return m.Crashed(
            at=self._tools.clock.now(),
            fault=Fault(Reason.INTERNAL, f"{type(error).__name__}: {error}"),
        )

    async def _leave(self) -> None:
        tasks = [*self._workers.values(), *self._helpers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._workers.clear()  # they refer back to this actor
        while not self._letters.empty():
            self._letters.get_nowait().durable.cancel()

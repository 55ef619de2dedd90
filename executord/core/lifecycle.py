"""The lifecycle of a run: `step(run, event)` gives the next run, what to report, what to do.

Pure: no clock, no I/O; time arrives in the events. `TABLE` holds every pair of state and event
that can happen. A pair that is missing cannot happen, and raises; what is ignored is written out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from executord.core import messages as m
from executord.core.reasons import Fault, Reason, Side
from executord.core.run import (
    MAX_SYNCS,
    Assignment,
    ImagePhase,
    KeepOn,
    Results,
    Run,
    Stage,
    StageCost,
    StopOrder,
    Transition,
)
from executord.core.states import MAY_GO_TO, TERMINAL, State
from executord.core.verdict import judge


class ImpossibleEventError(Exception):
    """An event came in a state in which it cannot happen: a bug."""


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from an event: the new run, the transitions to report, the commands to do."""

    run: Run
    transitions: tuple[Transition, ...] = ()
    commands: tuple[m.Command, ...] = ()


def accept(assignment: Assignment, *, at: float) -> Step:
    """A new run, Queued, with its first transition."""
    run = Run(
        assignment=assignment, state=State.QUEUED, accepted_at=at, state_since=at, transitions=1
    )
    first = Transition(run_id=run.id, number=1, time=at, from_state=None, to_state=State.QUEUED)
    return Step(run, (first,))


def step(run: Run, event: m.Event) -> Step:
    """Raises ImpossibleEventError for a pair that is not in the table."""
    if isinstance(event, m.StageEvent) and event.attempt < run.attempt:
        return Step(run)
    rule = TABLE.get((run.state, type(event)))
    if rule is None:
        raise ImpossibleEventError(f"run {run.id}: {type(event).__name__} while {run.state}")
    change = _Change(run, event)
    rule(change, event)
    return Step(change.run, tuple(change.transitions), tuple(change.commands))


class _Change:
    """Collects what one event leads to."""

    def __init__(self, run: Run, event: m.Event) -> None:
        self.run = run
        self.at = event.at
        self.transitions: list[Transition] = []
        self.commands: list[m.Command] = []
        if isinstance(event, m.StageEvent):
            self.add_costs(event.costs)

    def set(self, **fields: Any) -> None:
        self.run = replace(self.run, **fields)

    def add_costs(self, costs: tuple[StageCost, ...]) -> None:
        if costs:
            self.set(costs=self.run.costs + costs, pending_costs=self.run.pending_costs + costs)

    def go(self, state: State, *, reason: Reason | None = None, detail: str = "") -> None:
        run = self.run
        if state not in MAY_GO_TO[run.state]:
            raise ImpossibleEventError(f"run {run.id}: {run.state} may not go to {state}")
        self.transitions.append(
            Transition(
                run_id=run.id,
                number=run.transitions + 1,
                time=self.at,
                from_state=run.state,
                to_state=state,
                reason=reason,
                detail=detail,
                costs=run.pending_costs,
            )
        )
        self.set(
            state=state,
            state_since=self.at,
            transitions=run.transitions + 1,
            pending_costs=(),
            reason=reason,
        )

    def do(self, command: type[m.Command], **arguments: Any) -> None:
        self.commands.append(command(attempt=self.run.attempt, **arguments))

    def begin(self, stage: Stage, command: type[m.Command], **arguments: Any) -> None:
        self.set(in_flight=self.run.in_flight | {stage})
        self.do(command, **arguments)

    def landed(self, stage: Stage) -> None:
        self.set(in_flight=self.run.in_flight - {stage})

    def end(self, state: State, reason: Reason, detail: str = "") -> None:
        self.go(state, reason=reason, detail=detail)
        self.set(ended_at=self.at, in_flight=frozenset())
        self.begin(Stage.CLEAN_UP, m.CleanUp, keep_workspace=_keeps_workspace(self.run))


def _keeps_workspace(run: Run) -> bool:
    """Changed files that could not be copied back must not be thrown away with the rest."""
    return run.keeps_workspace


Rule: TypeAlias = Callable[[_Change, m.Event], None]


# -- Queued, Scheduled ---------------------------------------------------------------------------


def _slot_reserved(change: _Change, event: m.SlotReserved) -> None:
    change.add_costs((StageCost(stage=Stage.QUEUE, seconds=event.waited_seconds),))
    change.go(State.SCHEDULED)
    change.do(m.BeginWork)


def _begun(change: _Change, _: m.Begun) -> None:
    change.go(State.PREPARING)
    change.begin(Stage.PREPARE, m.PrepareFiles)
    change.begin(Stage.IMAGE, m.ProvideImage)


# -- Preparing, Building, Pulling: files and image are made ready side by side ---------------------


def _files_ready(change: _Change, event: m.FilesReady) -> None:
    change.landed(Stage.PREPARE)
    change.set(workspace=event.workspace)
    _advance(change)


def _image_phase_begun(change: _Change, event: m.ImagePhaseBegun) -> None:
    change.set(image_phase=event.phase)
    _advance(change)


def _image_ready(change: _Change, event: m.ImageReady) -> None:
    change.landed(Stage.IMAGE)
    change.set(image=event.image)
    _advance(change)


def _making_ready_failed(change: _Change, event: m.StageFailed) -> None:
    change.landed(event.stage)
    if change.run.fault is None:
        change.set(fault=event.fault)
        if change.run.in_flight:
            change.do(m.CancelStages, stages=change.run.in_flight)
    _advance(change)


def _making_ready_cancelled(change: _Change, event: m.StageCancelled) -> None:
    change.landed(event.stage)
    _advance(change)


_SHOWN_AS = {ImagePhase.BUILDING: State.BUILDING, ImagePhase.PULLING: State.PULLING}


def _advance(change: _Change) -> None:
    """Show the earliest stage that is not done; start the container when all are."""
    run = change.run
    if run.fault is not None:
        if not run.in_flight:
            _end_before_running(change, run.fault)
    elif run.workspace is None:
        return
    elif run.image is not None:
        change.go(State.RUNNING)
        change.begin(Stage.RUN, m.Execute)
    elif run.image_phase is not None:
        shown = _SHOWN_AS[run.image_phase]
        if shown in MAY_GO_TO[run.state]:
            change.go(shown)


def _end_before_running(change: _Change, fault: Fault) -> None:
    if fault.side is not Side.USER:
        change.end(State.ERROR, fault.reason, fault.detail)
        return
    if change.run.state is State.PREPARING:
        change.go(_SHOWN_AS[change.run.image_phase or ImagePhase.PULLING])
    change.end(State.FAILED, fault.reason, fault.detail)


# -- Running ---------------------------------------------------------------------------------------


def _container_seen(change: _Change, event: m.ContainerCreated | m.ContainerStarted) -> None:
    change.set(container=event.container)


def _time_limit_reached(change: _Change, event: m.TimeLimitReached) -> None:
    change.set(time_limit_reached=True, time_limit_grace_seconds=event.grace_seconds)
    change.do(m.EndContainer, grace_seconds=event.grace_seconds)


def _container_ended(change: _Change, event: m.ContainerEnded) -> None:
    change.landed(Stage.RUN)
    fault = judge(event.evidence, time_limit_reached=change.run.time_limit_reached)
    change.set(evidence=event.evidence, usage=event.usage, fault=fault)
    if fault is not None and fault.side is Side.PLATFORM:
        change.end(State.ERROR, fault.reason, fault.detail)
        return
    change.go(State.FINISHING)
    verdict = KeepOn.SUCCEEDED if fault is None else KeepOn.FAILED
    keep = verdict in change.run.assignment.keep_on
    change.begin(Stage.FINISH, m.KeepFiles, keep=keep)


def _execution_failed(change: _Change, event: m.StageFailed) -> None:
    change.landed(event.stage)
    change.set(fault=event.fault)
    change.end(State.ERROR, event.fault.reason, event.fault.detail)


# -- Finishing -------------------------------------------------------------------------------------


def _files_kept(change: _Change, event: m.FilesKept) -> None:
    change.landed(Stage.FINISH)
    change.set(result=event.result)
    fault = change.run.fault
    if fault is None:
        change.end(State.SUCCEEDED, Reason.COMPLETED)
    else:
        change.end(State.FAILED, fault.reason, fault.detail)


# -- Stopping --------------------------------------------------------------------------------------


def _stop_asked(change: _Change, event: m.StopAsked) -> None:
    change.set(stop=event.order)
    change.go(State.STOP_REQUESTED)
    change.do(m.BeginStop)


def _stop_begun(change: _Change, _: m.StopBegun) -> None:
    change.go(State.STOPPING)
    _end_what_is_in_flight(change)
    _stopped_when_idle(change)


def _end_what_is_in_flight(change: _Change) -> None:
    run = change.run
    if Stage.RUN in run.in_flight:
        change.do(m.EndContainer, grace_seconds=_order(run).grace_seconds)
    cancelled = run.in_flight & {Stage.PREPARE, Stage.IMAGE}
    if not _keeps_files(run):
        cancelled |= run.in_flight & {Stage.FINISH}
    if cancelled:
        change.do(m.CancelStages, stages=cancelled)


def _stopped_when_idle(change: _Change) -> None:
    run = change.run
    if run.in_flight:
        return
    if run.evidence is not None and run.result is None and _keeps_files(run):
        change.begin(Stage.FINISH, m.KeepFiles, keep=True)
        return
    change.end(State.STOPPED, Reason.STOPPED_BY_REQUEST, _order(run).reason)


def _order(run: Run) -> StopOrder:
    return run.stop or StopOrder()


def _keeps_files(run: Run) -> bool:
    return _order(run).results is Results.KEEP and KeepOn.STOPPED in run.assignment.keep_on


_STAGE_OF: dict[type[m.StageEvent], Stage] = {
    m.FilesReady: Stage.PREPARE,
    m.ImageReady: Stage.IMAGE,
    m.ContainerEnded: Stage.RUN,
    m.FilesKept: Stage.FINISH,
}


def _note(change: _Change, event: m.StageEvent) -> None:
    """Keep what a stage brought, without acting on it: a stop has been asked."""
    match event:
        case m.StageFailed() | m.StageCancelled():
            change.landed(event.stage)
        case _:
            change.landed(_STAGE_OF[type(event)])
    match event:
        case m.FilesReady():
            change.set(workspace=event.workspace)
        case m.ImageReady():
            change.set(image=event.image)
        case m.ContainerEnded():
            change.set(evidence=event.evidence, usage=event.usage)
        case m.FilesKept():
            change.set(result=event.result)
        case _:
            pass


def _landed_while_stopping(change: _Change, event: m.StageEvent) -> None:
    _note(change, event)
    _stopped_when_idle(change)


def _failed_after_stop_asked(change: _Change, event: m.StageFailed) -> None:
    """What cannot be made ready no longer matters; what cannot be ended or kept does."""
    if event.stage in (Stage.RUN, Stage.FINISH):
        _execution_failed(change, event)
        return
    _note(change, event)
    if change.run.state is State.STOPPING:
        _stopped_when_idle(change)


# -- Any time --------------------------------------------------------------------------------------


def _crashed(change: _Change, event: m.Crashed) -> None:
    change.set(fault=event.fault)
    change.end(State.ERROR, event.fault.reason, event.fault.detail)


def _synced(change: _Change, event: m.Synced) -> None:
    syncs = (*change.run.syncs, event.sync)[-MAX_SYNCS:]
    change.set(syncs=syncs, sync_count=change.run.sync_count + 1)


def _kept_later(change: _Change, event: m.FilesKeptLater) -> None:
    """State and reason stay what they were: only the files have found their place."""
    if change.run.keeps_workspace:
        change.set(result=event.result)


def _cleaned_up(change: _Change, _: m.CleanedUp) -> None:
    change.landed(Stage.CLEAN_UP)
    change.set(clean=True)


def _resumed(change: _Change, _: m.Resumed) -> None:
    """Every stage in flight is asked for again; each is safe to repeat."""
    change.set(attempt=change.run.attempt + 1)
    run = change.run
    doomed = run.fault is not None or run.state is State.STOPPING
    making_ready = run.in_flight & {Stage.PREPARE, Stage.IMAGE}
    if doomed and making_ready:
        change.do(m.CancelStages, stages=making_ready)
    else:
        _resume_making_ready(change, making_ready)
    if Stage.RUN in run.in_flight:
        change.do(m.Execute)
    if Stage.FINISH in run.in_flight:
        change.do(m.KeepFiles, keep=_kept_before(run))
    if Stage.CLEAN_UP in run.in_flight:
        change.do(m.CleanUp, keep_workspace=_keeps_workspace(run))
    _resume_state(change)


def _resume_making_ready(change: _Change, stages: frozenset[Stage]) -> None:
    if Stage.PREPARE in stages:
        change.do(m.PrepareFiles)
    if Stage.IMAGE in stages:
        change.do(m.ProvideImage)


def _kept_before(run: Run) -> bool:
    if run.stop is not None:
        return _keeps_files(run)
    verdict = KeepOn.SUCCEEDED if run.fault is None else KeepOn.FAILED
    return verdict in run.assignment.keep_on


def _resume_state(change: _Change) -> None:
    run = change.run
    if run.state is State.SCHEDULED:
        change.do(m.BeginWork)
    elif run.state is State.STOP_REQUESTED:
        change.do(m.BeginStop)
    elif Stage.RUN in run.in_flight and run.state is State.STOPPING:
        change.do(m.EndContainer, grace_seconds=_order(run).grace_seconds)
    elif Stage.RUN in run.in_flight and run.time_limit_reached:
        change.do(m.EndContainer, grace_seconds=run.time_limit_grace_seconds)


def _ignored(_change: _Change, _event: m.Event) -> None:
    """Written out wherever an event may come late and means nothing any more."""


# -- The table -------------------------------------------------------------------------------------

_MAKING_READY = (State.PREPARING, State.BUILDING, State.PULLING)
_LIVE = tuple(state for state in State if state not in TERMINAL)
_STOPPABLE = tuple(s for s in _LIVE if s not in (State.STOP_REQUESTED, State.STOPPING))
_OVER = tuple(TERMINAL)

_ROWS: tuple[tuple[type[m.Event], tuple[State, ...], Callable[..., None]], ...] = (
    (m.SlotReserved, (State.QUEUED,), _slot_reserved),
    (m.SlotReserved, (State.STOP_REQUESTED, State.STOPPING, *_OVER), _ignored),
    (m.Begun, (State.SCHEDULED,), _begun),
    (m.Begun, (State.STOP_REQUESTED, State.STOPPING, *_OVER), _ignored),
    (m.FilesReady, _MAKING_READY, _files_ready),
    (m.FilesReady, (State.STOP_REQUESTED,), _note),
    (m.FilesReady, (State.STOPPING,), _landed_while_stopping),
    (m.FilesReady, _OVER, _ignored),
    (m.ImagePhaseBegun, _MAKING_READY, _image_phase_begun),
    (m.ImagePhaseBegun, (State.STOP_REQUESTED, State.STOPPING, *_OVER), _ignored),
    (m.ImageReady, _MAKING_READY, _image_ready),
    (m.ImageReady, (State.STOP_REQUESTED,), _note),
    (m.ImageReady, (State.STOPPING,), _landed_while_stopping),
    (m.ImageReady, _OVER, _ignored),
    (m.ContainerCreated, (State.RUNNING, State.STOP_REQUESTED, State.STOPPING), _container_seen),
    (m.ContainerCreated, _OVER, _ignored),
    (m.ContainerStarted, (State.RUNNING, State.STOP_REQUESTED, State.STOPPING), _container_seen),
    (m.ContainerStarted, _OVER, _ignored),
    (m.TimeLimitReached, (State.RUNNING,), _time_limit_reached),
    (
        m.TimeLimitReached,
        (State.FINISHING, State.STOP_REQUESTED, State.STOPPING, *_OVER),
        _ignored,
    ),
    (m.ContainerEnded, (State.RUNNING,), _container_ended),
    (m.ContainerEnded, (State.STOP_REQUESTED,), _note),
    (m.ContainerEnded, (State.STOPPING,), _landed_while_stopping),
    (m.ContainerEnded, _OVER, _ignored),
    (m.FilesKept, (State.FINISHING,), _files_kept),
    (m.FilesKept, (State.STOP_REQUESTED,), _note),
    (m.FilesKept, (State.STOPPING,), _landed_while_stopping),
    (m.FilesKept, _OVER, _ignored),
    (m.StageFailed, _MAKING_READY, _making_ready_failed),
    (m.StageFailed, (State.RUNNING, State.FINISHING), _execution_failed),
    (m.StageFailed, (State.STOP_REQUESTED, State.STOPPING), _failed_after_stop_asked),
    (m.StageFailed, _OVER, _ignored),
    (m.StageCancelled, _MAKING_READY, _making_ready_cancelled),
    (m.StageCancelled, (State.STOP_REQUESTED,), _note),
    (m.StageCancelled, (State.STOPPING,), _landed_while_stopping),
    (m.StageCancelled, _OVER, _ignored),
    (m.StopAsked, _STOPPABLE, _stop_asked),
    (m.StopAsked, (State.STOP_REQUESTED, State.STOPPING, *_OVER), _ignored),
    (m.StopBegun, (State.STOP_REQUESTED,), _stop_begun),
    (m.StopBegun, _OVER, _ignored),
    (m.CleanedUp, _OVER, _cleaned_up),
    (
        m.Synced,
        (State.RUNNING, State.FINISHING, State.STOP_REQUESTED, State.STOPPING, *_OVER),
        _synced,
    ),
    (m.FilesKeptLater, _OVER, _kept_later),
    (m.Resumed, tuple(State), _resumed),
    (m.Crashed, _LIVE, _crashed),
    (m.Crashed, _OVER, _ignored),
)

TABLE: dict[tuple[State, type[m.Event]], Rule] = {
    (state, event): rule for event, states, rule in _ROWS for state in states
}

"""What can still be said of a row that is damaged: it costs that run, and no other.

A live run whose row cannot be read is given up: it goes on as far as to Error `journal_damaged`,
by the lifecycle like every run, and recovery cleans up what there is of it outside.
"""

from executord.core.reasons import Fault, Reason
from executord.core.run import Assignment, Environment, Run, Stage, Transition
from executord.core.states import State
from executord.journal.codec import RunRow, TransitionRow


def damaged_run(row: RunRow, transitions: list[Transition], why: str) -> Run:
    """A run made of the columns beside the body, and of what was reported."""
    last = transitions[-1] if transitions else None
    state = last.to_state if last else _state(row.state) or State.QUEUED
    is_over = state.is_terminal
    since = last.time if last else row.accepted_at
    return Run(
        assignment=Assignment(
            id=row.id,
            project=_text(row.project),
            command=(),
            environment=Environment(image=""),
            tier="",
        ),
        state=state,
        accepted_at=_number(row.accepted_at),
        state_since=since,
        transitions=last.number if last else 0,
        attempt=row.attempt if isinstance(row.attempt, int) and row.attempt > 0 else 1,
        in_flight=frozenset({Stage.CLEAN_UP}) if is_over and not row.clean else frozenset(),
        fault=damage(row.id, why),
        reason=Reason.JOURNAL_DAMAGED if is_over else None,
        clean=bool(is_over and row.clean),
        ended_at=since if is_over else None,
    )


def damage(run_id: str, why: str) -> Fault:
    return Fault(
        Reason.JOURNAL_DAMAGED, f"The record of run {run_id} in the journal is damaged: {why}."
    )


def damaged_transition(seq: int, row: TransitionRow, why: str) -> Transition:
    """Keeps its place: a receiver finds no gap, and is told that the content is lost."""
    return Transition(
        run_id=_text(row.run_id),
        number=row.number,
        time=_number(row.time),
        from_state=_state(row.from_state),
        to_state=_state(row.to_state) or State.ERROR,
        reason=Reason.JOURNAL_DAMAGED,
        detail=f"The record of this transition in the journal is damaged: {why}.",
        seq=seq,
    )


def _state(text: str | None) -> State | None:
    return next((state for state in State if state.value == text), None)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0

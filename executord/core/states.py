"""The states of a run and the transitions that may be seen from outside.

A transition that is not in `MAY_GO_TO` cannot be made: `core.lifecycle` refuses it. The diagram in
ARCHITECTURE.md is drawn from this table.
"""

from enum import StrEnum


class State(StrEnum):
    QUEUED = "Queued"
    SCHEDULED = "Scheduled"
    PREPARING = "Preparing"
    BUILDING = "Building"
    PULLING = "Pulling"
    RUNNING = "Running"
    FINISHING = "Finishing"
    SUCCEEDED = "Succeeded"
    STOP_REQUESTED = "StopRequested"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"
    ERROR = "Error"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({State.SUCCEEDED, State.STOPPED, State.FAILED, State.ERROR})

MAY_GO_TO: dict[State, tuple[State, ...]] = {
    State.QUEUED: (State.SCHEDULED, State.STOP_REQUESTED, State.ERROR),
    State.SCHEDULED: (State.PREPARING, State.STOP_REQUESTED, State.ERROR),
    State.PREPARING: (
        State.BUILDING,
        State.PULLING,
        State.RUNNING,
        State.STOP_REQUESTED,
        State.ERROR,
    ),
    State.BUILDING: (
        State.PULLING,
        State.RUNNING,
        State.FAILED,
        State.STOP_REQUESTED,
        State.ERROR,
    ),
    State.PULLING: (State.RUNNING, State.FAILED, State.STOP_REQUESTED, State.ERROR),
    State.RUNNING: (State.FINISHING, State.STOP_REQUESTED, State.ERROR),
    State.FINISHING: (State.SUCCEEDED, State.FAILED, State.STOP_REQUESTED, State.ERROR),
    State.STOP_REQUESTED: (State.STOPPING, State.ERROR),
    State.STOPPING: (State.STOPPED, State.ERROR),
    State.SUCCEEDED: (),
    State.STOPPED: (),
    State.FAILED: (),
    State.ERROR: (),
}

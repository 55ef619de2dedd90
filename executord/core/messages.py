"""What goes into the lifecycle (events) and what comes out of it (commands).

Every event carries the Unix time `at` when it happened. Events that end a stage also carry the
`attempt` of the command they answer, so that a late one can be told apart after a recovery.
"""

from dataclasses import dataclass

from executord.core.reasons import Fault
from executord.core.run import (
    Container,
    Evidence,
    Image,
    ImagePhase,
    Result,
    Stage,
    StageCost,
    StopOrder,
    Sync,
    UsageSummary,
    Workspace,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent(Event):
    attempt: int
    costs: tuple[StageCost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReserved(Event):
    """Admission gave the run a slot of its tier."""

    waited_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun(Event):
    """The slot is acknowledged; work starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesReady(StageEvent):
    workspace: Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePhaseBegun(StageEvent):
    """The image is not here: it is now being built, or pulled."""

    phase: ImagePhase


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReady(StageEvent):
    image: Image


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerCreated(StageEvent):
    """Durable before the container is started, so that it is never made a second time."""

    container: Container


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStarted(StageEvent):
    container: Container


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimitReached(StageEvent):
    grace_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEnded(StageEvent):
    """The container is gone for certain; `evidence` tells how."""

    evidence: Evidence
    usage: UsageSummary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesKept(StageEvent):
    """Finishing is done, also where there was nothing to keep."""

    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFailed(StageEvent):
    stage: Stage
    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCancelled(StageEvent):
    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAsked(Event):
    order: StopOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class StopBegun(Event):
    """The wish to stop is durable; now it is acted on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanedUp(StageEvent):
    """Container, volume and workspace of an ended run are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced(Event):
    """The files were stored while the run went on; makes no transition."""

    sync: Sync


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesKeptLater(Event):
    """What an ended run had kept on the node is stored now, or given up; makes no transition."""

    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """The daemon has restarted and takes the run up again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed(Event):
    """The daemon cannot go on with this run: it made a mistake, or lost what the run needs."""

    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginWork(Command):
    """Answered by Begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareFiles(Command):
    """Answered by FilesReady, StageFailed or StageCancelled of PREPARE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvideImage(Command):
    """Answered by ImageReady, StageFailed or StageCancelled of IMAGE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execute(Command):
    """Create, start and watch the container, or adopt the one that is there.

    Answered by ContainerEnded or StageFailed of RUN, and never cancelled.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class EndContainer(Command):
    """Ask the container to end, then kill it. Answered by nobody: Execute reports the end."""

    grace_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepFiles(Command):
    """Copy changed files back if `keep`. Answered by FilesKept, StageFailed or StageCancelled."""

    keep: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelStages(Command):
    """Each named stage still ends in exactly one event of its own."""

    stages: frozenset[Stage]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginStop(Command):
    """Answered by StopBegun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUp(Command):
    """Answered by CleanedUp."""

    keep_workspace: bool

"""What a run is: the assignment it came from and everything that is known about it.

All of it is plain, frozen data that can be written to the journal as JSON. Secrets are not part of
it: an assignment names them only. Times are Unix seconds, durations and sizes carry their unit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from executord.core.reasons import MEANINGS, Fault, Reason, Side
from executord.core.states import State


class PullPolicy(StrEnum):
    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


class KeepOn(StrEnum):
    """Ends after which changed files are copied back."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class Stage(StrEnum):
    """One piece of work of a run; each has a cost, and ends in exactly one event."""

    QUEUE = "queue"
    PREPARE = "prepare"
    IMAGE = "image"
    BUILD = "build"
    PULL = "pull"
    DATASETS = "datasets"
    START = "start"
    RUN = "run"
    FINISH = "finish"
    CLEAN_UP = "clean_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The image a run executes in: `image` as it is, or `dockerfile` built on top of it."""

    image: str
    dockerfile: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    pull: PullPolicy = PullPolicy.MISSING


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A directory or file of the node, or the files of a revision; the other one of both is "".

    A revision is always read-only.
    """

    source: str
    target: str
    read_only: bool = True
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a dispatcher asks for, checked and with its defaults filled in.

    `revision` is the digest of the revision whose files the run starts with, or "" for none.
    `secret_names` are the names alone. `owner_uid` is the user
    on this host who handed it in.
    """

    id: str
    project: str
    command: tuple[str, ...]
    environment: Environment
    tier: str
    number: int = 0
    started_by: str = ""
    revision: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    secret_names: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    run_seconds: float | None = None
    keep_on: frozenset[KeepOn] = frozenset(KeepOn)
    labels: Mapping[str, str] = field(default_factory=dict)
    owner_uid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage cost: wall seconds, and where its files and bytes came from.

    `way` says how it was done ("snapshot", "layer", "farm", "local", "pulled", "built", …), and
    `why` in a few words for what reason.
    """

    stage: Stage
    seconds: float
    files_from_cache: int = 0
    bytes_from_cache: int = 0
    files_fetched: int = 0
    bytes_fetched: int = 0
    files_sent: int = 0
    bytes_sent: int = 0
    way: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One reported change of state. Once journaled it is never changed.

    `number` counts the run's transitions from 1 without gaps; `seq` counts the node's, and is 0
    until the journal has assigned it. The first one comes from nowhere: `from_state` is None.
    """

    run_id: str
    number: int
    time: float
    from_state: State | None
    to_state: State
    reason: Reason | None = None
    detail: str = ""
    costs: tuple[StageCost, ...] = ()
    seq: int = 0


class ImagePhase(StrEnum):
    BUILDING = "building"
    PULLING = "pulling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A revision's files, mounted read-only at `target`.

    They are one directory of the node, `source`, or several that the engine puts on top of each
    other: then `volume` is its name for them; the other one of both is "".
    """

    target: str
    tree: str
    source: str = ""
    volume: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """The run's working directory: `tree` below, the run's own changes above.

    `base_revision` is "" when the directory started empty. `volume` is the engine's name for it.
    `mode` says how it was made: "overlay", "reflink", "hardlink" or "copy".
    """

    volume: str
    tree: str
    base_revision: str
    way: str
    mode: str = "overlay"
    datasets: tuple[Dataset, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The image a run executes in. `id` is the engine's (sha256:…), which never moves."""

    id: str
    reference: str
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The run's container. `started_at` is None until it is known to have started.

    `boot_id` names the boot of the host under which it was made.
    """

    id: str
    started_at: float | None = None
    boot_id: str = ""


class Results(StrEnum):
    KEEP = "keep"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """A request to stop; the first one counts."""

    results: Results = Results.KEEP
    grace_seconds: float = 10.0
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen of a container's end, as the engine, the kernel and this daemon tell it.

    `exit_code` is None when nobody knows it. `oom_kills` counts the kernel's kills in the run's
    control group, None where it cannot be read. `start_fault` and the engine's message in
    `start_error` are set when the command could not be started at all.
    """

    exit_code: int | None = None
    start_fault: Reason | None = None
    oom_killed: bool = False
    oom_kills: int | None = None
    start_error: str = ""
    container_missing: bool = False
    engine_restarted: bool = False
    host_restarted: bool = False
    killed_by_us: bool = False
    memory_limit_bytes: int = 0
    memory_peak_bytes: int | None = None
    started_at: float | None = None
    finished_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSummary:
    """A run's use as a whole, from the control group's own counters."""

    samples: int
    seconds: float
    cpu_seconds: float
    cpu_cores_average: float
    cpu_cores_peak: float
    memory_peak_bytes: int
    memory_average_bytes: int
    read_bytes: int | None = None
    written_bytes: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    oom_kills: int | None = None


ChangeKind = Literal["added", "changed", "deleted"]
Head = Literal["moved", "merged", "conflict", "unchanged", "not_kept"]
MAX_SYNCS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run left behind.

    `revision` is "" when nothing was kept. `head` tells what became of the project's head: moved
    to `revision`, moved to `head_revision` (`merged`: somebody else had moved it, and both sides
    are in there), left alone because both sides changed the same paths (`conflict`; the revision
    stays reachable under the run), or not touched because nothing changed. `skipped` names what
    cannot be stored (devices, sockets, …) with the reason, at most 100 of them. `conflicts` names
    the first paths of `conflict_count` that both sides changed.
    """

    revision: str = ""
    head: Head = "not_kept"
    added: int = 0
    changed: int = 0
    deleted: int = 0
    bytes_sent: int = 0
    skipped: tuple[str, ...] = ()
    diagnostics: Mapping[str, object] | None = None
    head_revision: str = ""
    conflicts: tuple[str, ...] = ()
    conflict_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """Files stored while the run went on. `paused_seconds`: how long its processes stood still."""

    at: float
    result: Result
    paused_seconds: float
    way: str = ""


_KEPT_ADVICE = (
    "The files that the run changed are kept on the node: `executorctl sync RUN` stores them, "
    "`executorctl sync --discard RUN` gives them up."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a run ended, for a person: whose side, what happened, what to do."""

    reason: Reason
    side: Side
    sentence: str
    detail: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything known about one run; only `core.lifecycle` makes a new one from an old one.

    `attempt` grows with every recovery. `in_flight` holds the stages whose end is awaited.
    `pending_costs` wait for the next transition to be reported with. `clean` says that nothing of
    the run is left outside the daemon's own records. `syncs` are the last of `sync_count`.
    """

    assignment: Assignment
    state: State
    accepted_at: float
    state_since: float
    transitions: int = 0
    attempt: int = 1
    in_flight: frozenset[Stage] = frozenset()
    workspace: Workspace | None = None
    image: Image | None = None
    image_phase: ImagePhase | None = None
    container: Container | None = None
    time_limit_reached: bool = False
    time_limit_grace_seconds: float = 10.0
    stop: StopOrder | None = None
    evidence: Evidence | None = None
    fault: Fault | None = None
    reason: Reason | None = None
    result: Result | None = None
    usage: UsageSummary | None = None
    costs: tuple[StageCost, ...] = ()
    pending_costs: tuple[StageCost, ...] = ()
    clean: bool = False
    ended_at: float | None = None
    syncs: tuple[Sync, ...] = ()
    sync_count: int = 0

    @property
    def id(self) -> str:
        return self.assignment.id

    @property
    def is_over(self) -> bool:
        return self.state.is_terminal

    @property
    def keeps_workspace(self) -> bool:
        """It has ended, and what it changed is on this node and nowhere else: neither stored nor
        given up. The command may have executed where its end or its start is known.
        """
        executed = self.evidence is not None or (
            self.container is not None and self.container.started_at is not None
        )
        given_up = self.stop is not None and self.stop.results is Results.DISCARD
        return (
            self.state is State.ERROR
            and self.workspace is not None
            and executed
            and self.result is None
            and not given_up
        )

    def explanation(self) -> Explanation | None:
        """None while the run lives."""
        if self.reason is None:
            return None
        meaning = MEANINGS[self.reason]
        detail = self.fault.detail if self.fault and self.fault.reason is self.reason else ""
        return Explanation(
            reason=self.reason,
            side=meaning.side,
            sentence=meaning.sentence,
            detail=detail,
            advice=self._advice(meaning.advice),
        )

    def _advice(self, advice: str) -> str:
        if self.keeps_workspace:
            advice = f"{advice} {_KEPT_ADVICE}".strip()
        return advice.replace("RUN", self.id)

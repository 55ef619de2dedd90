"""What the socket answers. Times are RFC 3339 in UTC with microseconds; units stand in the names.

The types are what OpenAPI is made from; `executord.api.shown` fills them.
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from executord.core.cloudevents import CloudEvent
from executord.core.reasons import Reason, Side
from executord.core.run import (
    ChangeKind,
    Head,
    KeepOn,
    PullPolicy,
    Results,
    Stage,
    UsageSummary,
)
from executord.core.states import State
from executord.ports import Stream

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Scalar = str | int | float | bool | None
Base64 = Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]


class Answer(msgspec.Struct, kw_only=True):
    """One JSON object of an answer."""


# -- runs ------------------------------------------------------------------------------------------


class FilesAnswer(Answer):
    revision: str


class EnvironmentAnswer(Answer):
    image: str
    dockerfile: str
    build_args: dict[str, str]
    pull: PullPolicy


class MountAnswer(Answer):
    """Of the node (`source`), or a revision's files; the other one of both is null."""

    source: str | None
    revision: str | None
    target: str
    read_only: bool


class LimitsAnswer(Answer):
    run_seconds: float | None


class ResultsAnswer(Answer):
    keep_on: list[KeepOn]


class AssignmentAnswer(Answer):
    """What was asked for, with the node's defaults filled in. Of secrets it has the names alone."""

    id: str
    project: str
    number: int
    started_by: str
    tier: str
    files: FilesAnswer | None
    environment: EnvironmentAnswer
    command: list[str]
    env: dict[str, str]
    secret_names: list[str]
    mounts: list[MountAnswer]
    limits: LimitsAnswer
    results: ResultsAnswer
    labels: dict[str, str]


class ExplanationAnswer(Answer):
    """Why a run ended, for a person."""

    reason: Reason
    side: Side
    sentence: str
    detail: str
    advice: str


class CostAnswer(Answer):
    stage: Stage
    seconds: float
    files_from_cache: int
    bytes_from_cache: int
    files_fetched: int
    bytes_fetched: int
    files_sent: int
    bytes_sent: int
    way: str
    why: str


class ProgressAnswer(Answer):
    """How far a stage has come. Totals are 0 while unknown; rate and time left are null."""

    what: str
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    step: int
    steps: int
    detail: str
    bytes_per_second: float | None
    seconds_left: float | None


class TransitionAnswer(Answer):
    """`from` is null in a run's first transition."""

    seq: int
    number: int
    time: Time
    from_state: State | None = msgspec.field(name="from")
    to_state: State = msgspec.field(name="to")
    reason: Reason | None
    detail: str
    costs: list[CostAnswer]


class ResultAnswer(Answer):
    """What a run left behind; `diagnostics` is the content of its `dominostats.json`."""

    revision: str | None
    head: Head
    added: int
    changed: int
    deleted: int
    bytes_sent: int
    skipped: list[str]
    diagnostics: msgspec.Raw | None
    head_revision: Annotated[
        str | None, Meta(description="The merge that took the revision into the head.")
    ]
    conflicts: Annotated[
        list[str], Meta(description="The first paths that both sides changed.", max_length=20)
    ]
    conflict_count: int


class SyncedAnswer(Answer):
    """Files that were stored while the run went on; `way` is how they were copied."""

    at: Time
    paused_seconds: float
    way: str
    result: ResultAnswer


class SyncAnswer(Answer):
    """What a sync came to. `mid_run`: the run goes on; it stood still for `paused_seconds`."""

    run_id: str
    at: Time
    mid_run: bool
    paused_seconds: float
    way: str
    result: ResultAnswer


class StopAnswer(Answer):
    results: Results
    grace_seconds: float
    reason: str
    by: str


class ImageAnswer(Answer):
    id: str
    reference: str
    key: str


class RunAnswer(Answer):
    """A run. `timeline` is given for a single run only."""

    id: str
    project: str
    number: int
    started_by: str
    owner_uid: int
    tier: str
    state: State
    state_since: Time
    accepted_at: Time
    ended_at: Time | None
    attempt: int
    assignment: AssignmentAnswer
    reason: Reason | None
    explanation: ExplanationAnswer | None
    evidence: Annotated[
        dict[str, Scalar] | None,
        Meta(description="What the end was decided on: exit code, signal, OOM counters, messages."),
    ]
    exit_code: int | None
    stop: StopAnswer | None
    result: ResultAnswer | None
    costs: list[CostAnswer]
    usage: UsageSummary | None
    progress: dict[str, ProgressAnswer]
    queue_position: Annotated[int | None, Meta(description="0 is next.")]
    image: ImageAnswer | None
    labels: dict[str, str]
    syncs: Annotated[
        list[SyncedAnswer], Meta(description="The last times its files were stored meanwhile.")
    ]
    sync_count: int
    keeps_workspace: Annotated[
        bool, Meta(description="It has ended, and what it changed is on this node alone.")
    ]
    timeline: list[TransitionAnswer] | UnsetType = UNSET


class RunsAnswer(Answer):
    """Newest first. A page may be short; only without `next_cursor` it is the last one."""

    runs: list[RunAnswer]
    next_cursor: str | None


class LogRecord(Answer):
    """A piece of output: `data` where it is UTF-8, else `data_base64`; always exactly one of both.

    `offset` counts the run's output bytes before it. In a gap `data` is empty, and `lost_bytes`
    says how much is missing (0: nobody knows).
    """

    offset: int
    stream: Stream
    time: Time | UnsetType = UNSET
    data: str | UnsetType = UNSET
    data_base64: Base64 | UnsetType = UNSET
    lost_bytes: int = 0


class LogsAnswer(Answer):
    """Go on with `since=next_offset`; `more` says that there is more already."""

    records: list[LogRecord]
    next_offset: int
    more: bool


class SampleAnswer(Answer):
    """One look at a run's control group. What the kernel does not tell is null."""

    time: Time
    cpu_seconds: float
    cpu_user_seconds: float | None
    cpu_system_seconds: float | None
    cpu_throttled_seconds: float | None
    cpu_cores: float
    memory_bytes: int
    memory_cache_bytes: int | None
    memory_limit_bytes: int | None
    memory_peak_bytes: int | None
    oom_kills: int | None
    read_bytes: int | None
    written_bytes: int | None
    network_received_bytes: int | None
    network_sent_bytes: int | None
    pids: int | None


class UsageAnswer(Answer):
    """Go on with `since=next_since` (Unix seconds); the summary comes with the run's end."""

    samples: list[SampleAnswer]
    summary: UsageSummary | None
    next_since: float


class UsageEnd(Answer):
    """The last piece of a stream of samples."""

    summary: UsageSummary | None


class ChangeAnswer(Answer):
    """`path` where it is UTF-8, else `path_base64`; always exactly one of both."""

    kind: ChangeKind
    size_bytes: int
    path: str | UnsetType = UNSET
    path_base64: Base64 | UnsetType = UNSET


class ChangesAnswer(Answer):
    """`keeps_workspace`: the run has ended, and these are on this node alone."""

    run_id: str
    keeps_workspace: bool
    changes: list[ChangeAnswer]


class EventsAnswer(Answer):
    """Go on with `after=next_after`."""

    events: list[CloudEvent]
    next_after: int


SCHEMA_ADDITIONS: dict[str, dict[str, object]] = {
    "LogRecord": {"oneOf": [{"required": ["data"]}, {"required": ["data_base64"]}]},
    "ChangeAnswer": {"oneOf": [{"required": ["path"]}, {"required": ["path_base64"]}]},
}
"""What the types cannot say about themselves."""

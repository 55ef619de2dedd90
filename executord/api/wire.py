r"""What may be sent to the socket: the requests' bodies and query parameters, every one bounded.

What a schema can say stands in the types, and so in OpenAPI; `executord.api.checks` does the rest.
A pattern ends in `$(?!\n)`, since `$` alone lets a line end pass.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from executord.core.run import KeepOn, PullPolicy, Results
from executord.core.states import State

T = TypeVar("T")

MAX_BODY_BYTES = 1 << 20
MAX_COMMAND_BYTES = 256 * 1024
MAX_WORD_BYTES = 128 * 1024 - 1  # the kernel takes no longer argument or variable
MAX_MAP_BYTES = 256 * 1024

NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,254}$(?!\n)"
LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$(?!\n)"
RUN_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$(?!\n)"
_PROJECT_PATTERN = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$(?!\n)"
_TIER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$(?!\n)"
_IMAGE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$(?!\n)"
_REVISION_PATTERN = r"^sha256:[0-9a-f]{64}$(?!\n)"
_LINE_PATTERN = r"^[^\u0000-\u001f\u007f]*$(?!\n)"


def _named_by(pattern: str, *, most: int) -> Meta:
    return Meta(max_length=most, extra_json_schema={"propertyNames": {"pattern": pattern}})


RunId = Annotated[str, Meta(pattern=RUN_ID_PATTERN, description="Unique on the node, for ever.")]
Project = Annotated[str, Meta(pattern=_PROJECT_PATTERN, max_length=128)]
TierName = Annotated[str, Meta(pattern=_TIER_PATTERN)]
ImageName = Annotated[str, Meta(pattern=_IMAGE_PATTERN, max_length=512)]
RevisionDigest = Annotated[str, Meta(pattern=_REVISION_PATTERN)]
Line = Annotated[str, Meta(pattern=_LINE_PATTERN, max_length=128)]
HostPath = Annotated[str, Meta(min_length=1, max_length=1024, description="Absolute, no `..`.")]
Word = Annotated[str, Meta(max_length=MAX_WORD_BYTES)]

Variable = Annotated[str, Meta(max_length=MAX_WORD_BYTES)]
Argument = Annotated[str, Meta(max_length=4096)]
Secret = Annotated[str, Meta(max_length=64 * 1024)]
LabelValue = Annotated[str, Meta(max_length=256, pattern=_LINE_PATTERN)]

Env = Annotated[dict[str, Variable], _named_by(NAME_PATTERN, most=512)]
BuildArgs = Annotated[dict[str, Argument], _named_by(NAME_PATTERN, most=64)]
Secrets = Annotated[dict[str, Secret], _named_by(NAME_PATTERN, most=64)]
Labels = Annotated[dict[str, LabelValue], _named_by(LABEL_PATTERN, most=64)]


class Request(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A body, or a part of one; a field that is not known is an error."""


class RevisionWanted(Request, frozen=True):
    """The project files that the run starts with."""

    revision: RevisionDigest


class EnvironmentWanted(Request, frozen=True):
    """The image: as it is, or with the lines of `dockerfile` built on top of it."""

    image: ImageName | None = None
    dockerfile: Annotated[str, Meta(max_length=64 * 1024)] = ""
    build_args: BuildArgs = {}
    pull: PullPolicy = PullPolicy.MISSING


class MountWanted(Request, frozen=True):
    """Of the node (`source`), or a revision's files (`revision`, always read-only)."""

    target: HostPath
    source: HostPath | None = None
    revision: RevisionDigest | None = None
    read_only: bool = True


class LimitsWanted(Request, frozen=True):
    run_seconds: Annotated[float, Meta(gt=0, le=366 * 86400)] | None = None


class ResultsWanted(Request, frozen=True):
    """After which ends changed files are copied back."""

    keep_on: Annotated[tuple[KeepOn, ...], Meta(max_length=8)] = tuple(KeepOn)


class RunWanted(Request, frozen=True):
    """An assignment. Secrets are kept in memory only, and never answered."""

    command: Annotated[list[Word], Meta(min_length=1, max_length=1024)]
    id: RunId | None = None
    project: Project | None = None
    number: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0
    started_by: Line = ""
    tier: TierName | None = None
    files: RevisionWanted | None = None
    environment: EnvironmentWanted = EnvironmentWanted()
    env: Env = {}
    secrets: Secrets = {}
    mounts: Annotated[list[MountWanted], Meta(max_length=32)] = []
    limits: LimitsWanted = LimitsWanted()
    results: ResultsWanted = ResultsWanted()
    labels: Labels = {}

    def __repr__(self) -> str:
        return f"RunWanted(id={self.id!r})"  # never the secrets, wherever it may be printed


class StopWanted(Request, frozen=True):
    """Without `grace_seconds` the node's own grace counts."""

    results: Results = Results.KEEP
    grace_seconds: Annotated[float, Meta(ge=0, le=3600)] | None = None
    reason: Annotated[str, Meta(pattern=_LINE_PATTERN, max_length=1024)] = ""


class SyncWanted(Request, frozen=True):
    """`discard` gives up, for good, what an ended run could not store."""

    discard: bool = False


class PruneWanted(Request, frozen=True):
    dry_run: bool = False


class VerifyWanted(Request, frozen=True):
    """With `repair` what is bad is put aside and fetched again."""

    repair: bool = False


class ImagePrefetchWanted(Request, frozen=True):
    """An environment as a run would ask for it; what is here already is not asked for anew."""

    image: ImageName | None = None
    dockerfile: Annotated[str, Meta(max_length=64 * 1024)] = ""
    build_args: BuildArgs = {}


class PrefetchWanted(Request, frozen=True):
    """Revisions whose files, and environments whose images, runs will need soon."""

    revisions: Annotated[list[RevisionDigest], Meta(max_length=64)] = []
    images: Annotated[list[ImagePrefetchWanted], Meta(max_length=16)] = []


class Anything(msgspec.Struct, frozen=True):
    """A body of a route that is not implemented yet."""


# -- Query parameters: text that is converted; one that is not known is an error -------------------
# (An optional one is UNSET, not None: else the text "null" would mean "not given".)


def given(value: T | UnsetType) -> T | None:
    return None if isinstance(value, UnsetType) else value


Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class NoQuery(Request, frozen=True):
    pass


class VerifyQuery(Request, frozen=True):
    """With `follow` the check shows how far it is, and is given up when its reader leaves."""

    follow: bool = False


class RunsQuery(Request, frozen=True):
    state: State | UnsetType = UNSET
    project: Project | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[str, Meta(min_length=1, max_length=512)] | UnsetType = UNSET


class LogsQuery(Request, frozen=True):
    """`since` is a byte offset. `limit` bounds a page that does not follow, in bytes of output."""

    since: Offset = 0
    follow: bool = False
    stream: Literal["stdout", "stderr", "build"] | UnsetType = UNSET
    timestamps: bool = True
    limit: Annotated[int, Meta(ge=1, le=4 << 20)] = 1 << 20


class UsageQuery(Request, frozen=True):
    """Samples taken after `since`, in Unix seconds."""

    since: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    follow: bool = False


class EventsQuery(Request, frozen=True):
    """Events with a sequence number above `after`; `limit` bounds a page that does not follow."""

    after: Offset = 0
    follow: bool = False
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class EntriesQuery(Request, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000

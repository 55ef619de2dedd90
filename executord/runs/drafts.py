"""What a dispatcher asks for, checked for its form alone, before the node's defaults and rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from executord.core.run import Environment, KeepOn, Mount, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentDraft:
    """An assignment in which `id`, `project`, `tier` and `environment.image` may be "" (not given).

    Secrets are not part of it; they travel beside it.
    """

    command: tuple[str, ...]
    environment: Environment
    id: str = ""
    project: str = ""
    tier: str = ""
    number: int = 0
    started_by: str = ""
    revision: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    run_seconds: float | None = None
    keep_on: frozenset[KeepOn] = frozenset(KeepOn)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """`created` is False where the same assignment was submitted before: `run` is that one."""

    run: Run
    created: bool

"""How runs get their working directories on a node."""

from dataclasses import dataclass
from typing import Literal

WorkspaceMode = Literal["overlay", "reflink", "hardlink", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeVerdict:
    """One way of making a working directory. `why` is why it does not work, or "" where it does."""

    mode: WorkspaceMode
    works: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceModes:
    """What was chosen, or `forced` by the configuration, and what became of each, best first."""

    chosen: WorkspaceMode
    forced: bool
    verdicts: tuple[ModeVerdict, ...]

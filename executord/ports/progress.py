"""How far a piece of work has come."""

from collections.abc import (
    Callable,
)
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage has come, for people; never journaled. Totals are 0 while unknown."""

    what: str
    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    step: int = 0
    steps: int = 0
    detail: str = ""


OnProgress = Callable[[Progress], None]

"""How far a piece of work has come."""

from collections.abc import (
    Callable,
)
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage has come, for people; never journaled. Totals are 0 while unknown.

    `bytes_per_second` is what was lately done, `seconds_left` what the rest takes at that rate;
    None while nobody can tell.
    """

    what: str
    files_done: int = 0
    files_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    step: int = 0
    steps: int = 0
    detail: str = ""
    bytes_per_second: float | None = None
    seconds_left: float | None = None


OnProgress = Callable[[Progress], None]

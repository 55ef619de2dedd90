"""What a check of everything that the file cache holds tells."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedObject:
    """`what` is wrong with it. `trees` are those it was found through, `runs` live ones on them.

    `mended`: nothing bad is left in its place; where a tree needs it, it is there again, whole.
    `why_not` says why mending it failed; "" where that was not tried.
    """

    kind: Literal["blob", "snapshot", "layer", "tree", "revision"]
    digest: str
    what: str
    mended: bool
    trees: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was looked at, and all that was bad (`damaged`); `objects` are the first of them."""

    snapshots: int
    blobs: int
    trees: int
    revisions: int
    bytes_read: int
    seconds: float
    damaged: int
    mended: int
    objects: tuple[DamagedObject, ...] = ()
    skipped: tuple[str, ...] = ()
    """Trees that could not be looked at, and why: the store that knows them was away."""

    @property
    def is_good(self) -> bool:
        return self.damaged == self.mended and not self.skipped

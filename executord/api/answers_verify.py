"""What the socket answers about a check of the file cache."""

from typing import Literal

from executord.api.answers import Answer


class VerifyProgress(Answer):
    """How far the check is. Totals are 0 while unknown, and an estimate."""

    what: str
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


class DamagedAnswer(Answer):
    """`trees` are those it was found through; `runs` the live ones that may have seen it.

    `why_not` says why mending it failed; "" where that was not tried.
    """

    kind: Literal["blob", "snapshot", "layer", "tree", "revision"]
    digest: str
    what: str
    mended: bool
    trees: list[str]
    runs: list[str]
    why_not: str


class VerifyAnswer(Answer):
    """What was looked at and what was bad; at most 1000 are named. `good`: nothing bad is left.

    `skipped` are trees that could not be looked at, each with why.
    """

    good: bool
    snapshots: int
    blobs: int
    trees: int
    revisions: int
    bytes_read: int
    seconds: float
    damaged: int
    mended: int
    objects: list[DamagedAnswer]
    skipped: list[str]

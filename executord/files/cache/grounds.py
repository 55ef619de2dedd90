"""What a run can stand on: a whole snapshot of its tree, or a layer on top of another ground."""

from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

GroundKind = Literal["snapshot", "layer"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Ground(NamedTuple):
    """A tree may have one of each kind."""

    kind: GroundKind
    tree: str


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a ground holds. `files`, `bytes` and `directories` are those of the whole tree, as a
    run sees it; what begins with `own` is what this directory takes by itself: the bytes of its
    directories and of files not linked, and the inodes.

    A layer stands on exactly the ground that has `base_id` as its `id`. `depth` counts the layers,
    0 for a snapshot. `entries` are the names in it. One that was made since `boot` began may be
    torn by a power cut until it is marked durable.
    """

    files: int
    bytes: int
    directories: int
    own_bytes: int
    made_at: float
    made_in_seconds: float
    own_inodes: int = 0
    entries: int = 0
    records: int = 1
    id: str = ""
    boot: str = ""
    base: str = ""
    base_kind: GroundKind = "snapshot"
    base_id: str = ""
    depth: int = 0

    @property
    def kind(self) -> GroundKind:
        return "layer" if self.depth else "snapshot"

    @property
    def ground_below(self) -> Ground | None:
        return Ground(self.base_kind, self.base) if self.depth else None

    @property
    def entries_in_all(self) -> int:
        """Of the whole tree."""
        return self.files + self.directories - 1


def boot_id() -> str:
    """Another one after every start of the machine."""
    return _BOOT_ID.read_text().strip()

"""What the file cache knows of itself beyond what lies on the disk, kept over restarts.

`cache-state.json` holds counts, uses, what things cost and what was evicted. Losing it costs a
full count of the cache and some foresight, nothing else.
"""

import contextlib
from pathlib import Path

import msgspec

from executord.core.eviction import Space
from executord.core.fetch_cost import FetchCost
from executord.files.system import disk
from executord.ports import EvictionTrigger

NAME = "cache-state.json"
MOST_RECENT = 100

_MOST_BYTES = 256 << 20


class TreeUse(msgspec.Struct):
    """`uses` are discounted up to `last_used`."""

    uses: float
    last_used: float


class Measured(msgspec.Struct, frozen=True):
    """What the ground with that id takes by itself."""

    id: str
    bytes: int
    inodes: int

    @property
    def space(self) -> Space:
        return Space(self.bytes, self.inodes)


class Asked(msgspec.Struct):
    """Of runs, and of their files and bytes: how many were here, and how many were not."""

    since: float = 0.0
    hit_runs: int = 0
    missed_runs: int = 0
    hit_files: int = 0
    missed_files: int = 0
    hit_bytes: int = 0
    missed_bytes: int = 0

    def add(self, *, files: int, size: int, missed_files: int, missed_bytes: int) -> None:
        if missed_files:
            self.missed_runs += 1
        else:
            self.hit_runs += 1
        self.hit_files += max(0, files - missed_files)
        self.missed_files += missed_files
        self.hit_bytes += max(0, size - missed_bytes)
        self.missed_bytes += missed_bytes


class Evicted(msgspec.Struct):
    entries: int = 0
    bytes: int = 0
    inodes: int = 0


class RecentEviction(msgspec.Struct, frozen=True):
    time: float
    kind: str
    digest: str
    trigger: str
    why: str
    freed_bytes: int


class Fetched(msgspec.Struct):
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Remembered(msgspec.Struct):
    """`clean` where the daemon that wrote it was told to leave: then the counts are exact."""

    clean: bool = False
    blobs: tuple[int, int] | None = None
    measured: dict[str, Measured] = msgspec.field(default_factory=dict)
    uses: dict[str, TreeUse] = msgspec.field(default_factory=dict)
    asked: Asked = msgspec.field(default_factory=Asked)
    evicted: dict[EvictionTrigger, Evicted] = msgspec.field(default_factory=dict)
    recent: list[RecentEviction] = msgspec.field(default_factory=list)
    fetched: Fetched = msgspec.field(default_factory=Fetched)
    fetch_cost: FetchCost = msgspec.field(default_factory=FetchCost)
    counted_at: float = 0.0
    corrections: int = 0
    corrected_bytes: int = 0


def load_into(remembered: Remembered, root: Path) -> None:
    """What an earlier daemon has left; nothing where it left none, or none that can be read."""
    path = root / NAME
    with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeError):
        if path.stat().st_size <= _MOST_BYTES:
            found = msgspec.json.decode(path.read_bytes(), type=Remembered)
            for name in Remembered.__struct_fields__:
                setattr(remembered, name, getattr(found, name))


def save(root: Path, remembered: Remembered) -> None:
    """Whole or not at all; a power cut may bring back an older one. Raises OSError."""
    disk.write_whole(root / NAME, msgspec.json.encode(remembered), durable=False, mode=0o600)

"""All that could be evicted, and who shares what: mark, once over the records of all grounds.

Blobs that exactly the same grounds link to are one part, however many they are. The records are
gone through a range of digests at a time, so that memory stays bounded with millions of links.
Blobs that no ground links to are entries by themselves, many of them together where they are many.
"""

import os
import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from executord.core.eviction import Evictable, Part
from executord.files.cache.blobs import Blobs
from executord.files.cache.grounds import About, Ground
from executord.files.cache.measure import SECTOR_BYTES
from executord.files.cache.records import GROUPED
from executord.files.model import digests

RECORD = struct.Struct(">32s?Q")
_BRIEF = struct.Struct(">Q24x?Q")
_LINKS_AT_ONCE = 1 << 19
_LARGE_BYTES = 1 << 20
_MOST_LOOSE_A_SHARD = 40
_EXECUTABLE = "-x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A ground with what is known of it. `own` is what its directory takes by itself."""

    ground: Ground
    about: About
    records: Path
    last_used: float
    own_bytes: int
    own_inodes: int
    uses: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loose:
    """Blobs that no ground links to: their names below `shard`, of at least one."""

    names: str
    shard: int
    files: int
    bytes: int
    last_used: float

    @property
    def first(self) -> str:
        return self.names.partition("\n")[0]


@dataclass(slots=True)
class Inventory:
    """`entries` by key: those of grounds, then those of loose blobs."""

    parts: list[Part] = field(default_factory=list)
    entries: dict[str, Evictable] = field(default_factory=dict)
    grounds: dict[str, Held] = field(default_factory=dict)
    loose: dict[str, Loose] = field(default_factory=dict)


def key_of_ground(ground: Ground) -> str:
    return f"{ground.kind}:{ground.tree}"


def take_inventory(
    held: Sequence[Held], blobs: Blobs, *, seconds_per_file: float, seconds_per_byte: float
) -> Inventory:
    """Raises OSError. What vanishes meanwhile is left out."""
    marking = _Marking(held, blobs)
    loose = marking.run()
    inventory = Inventory()
    members: list[list[int]] = [[] for _ in held]
    for holders, (size, count) in marking.classes().items():
        for number in holders:
            members[number].append(len(inventory.parts))
        seconds = count * seconds_per_file + size * seconds_per_byte
        inventory.parts.append(Part(size, count, seconds))
    for each, parts in zip(held, members, strict=True):
        key = key_of_ground(each.ground)
        below = each.about.ground_below
        inventory.grounds[key] = each
        inventory.entries[key] = Evictable(
            key=key,
            last_used=each.last_used,
            own_bytes=each.own_bytes,
            own_inodes=each.own_inodes,
            own_seconds=each.about.made_in_seconds,
            parts=parts,
            uses=max(each.uses, 1.0),
            base=key_of_ground(below) if below is not None else "",
        )
    for bundle in loose:
        key = f"blob:{bundle.first}"
        inventory.loose[key] = bundle
        inventory.entries[key] = Evictable(
            key=key,
            last_used=bundle.last_used,
            own_bytes=bundle.bytes,
            own_inodes=bundle.files,
            own_seconds=bundle.files * seconds_per_file + bundle.bytes * seconds_per_byte,
        )
    return inventory


class _Marking:
    def __init__(self, held: Sequence[Held], blobs: Blobs) -> None:
        self._held = held
        self._blobs = blobs
        self._pinned = blobs.pinned_places()
        self._holders: list[tuple[int, ...]] = []
        self._bytes: list[int] = []
        self._counts: list[int] = []
        self._large: dict[int, int] = {}

    def run(self) -> list[Loose]:
        links = sum(_links(each.records) for each in self._held)
        step = max(1, 256 * _LINKS_AT_ONCE // max(links, _LINKS_AT_ONCE))
        loose: list[Loose] = []
        for first in range(0, 256, step):
            last = min(256, first + step)
            class_of = self._mark(first, last)
            for shard in range(first, last):
                loose += self._loose(shard, class_of)
        return loose

    def classes(self) -> dict[tuple[int, ...], tuple[int, int]]:
        """By who holds them, their bytes and how many they are."""
        sums: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0])
        for holders, size, count in zip(self._holders, self._bytes, self._counts, strict=True):
            if count:
                sums[holders][0] += size
                sums[holders][1] += count
        return {holders: (size, count) for holders, (size, count) in sums.items()}

    def _mark(self, first: int, last: int) -> dict[int, int]:
        """The class of each blob, by the first 64 bits of its digest and whether it is executable.

        Two blobs that share those bits would be counted as one; nothing is deleted by them.
        """
        class_of: dict[int, int] = {}
        sizes, counts = self._bytes, self._counts
        for number, each in enumerate(self._held):
            moved: dict[int, int] = {}
            try:
                region = read_region(each.records, first, last, each.about.records >= GROUPED)
            except FileNotFoundError:
                continue  # thrown away meanwhile
            for at, (name, executable, size) in enumerate(_BRIEF.iter_unpack(region)):
                key = (name << 1) | executable
                taken = (size + 4095) & ~4095
                if size >= _LARGE_BYTES:
                    taken = self._taken_by_large(key, region, at, taken)
                before = class_of.get(key, -1)
                after = moved.get(before, -1)
                if after < 0:
                    after = moved[before] = self._new_class(before, number)
                if before >= 0:
                    sizes[before] -= taken
                    counts[before] -= 1
                sizes[after] += taken
                counts[after] += 1
                class_of[key] = after
        return class_of

    def _new_class(self, before: int, number: int) -> int:
        self._holders.append((*self._holders[before], number) if before >= 0 else (number,))
        self._bytes.append(0)
        self._counts.append(0)
        return len(self._holders) - 1

    def _taken_by_large(self, key: int, region: bytes, at: int, otherwise: int) -> int:
        """Large files may have holes."""
        known = self._large.get(key)
        if known is None:
            raw, executable, _ = RECORD.unpack_from(region, at * RECORD.size)
            name = raw.hex()
            path = f"{self._blobs.shard(raw[0])}/{name}{_EXECUTABLE if executable else ''}"
            try:
                known = os.stat(path).st_blocks * SECTOR_BYTES  # noqa: PTH116 - hot
            except FileNotFoundError:
                known = otherwise
            self._large[key] = known
        return known

    def _loose(self, shard: int, class_of: Mapping[int, int]) -> list[Loose]:
        found: list[tuple[float, int, str]] = []
        with os.scandir(self._blobs.shard(shard)) as entries:
            for entry in entries:
                name = entry.name
                try:
                    key = (int(name[:16], 16) << 1) | name.endswith(_EXECUTABLE)
                except ValueError:
                    continue  # not of our making
                if key in class_of:
                    if self._blobs.runs_link_to_them:
                        self._leave_out_if_linked(entry, class_of[key])
                    continue
                if f"{shard:02x}/{name}" in self._pinned:
                    continue
                if not digests.is_digest(digests.PREFIX + name.removesuffix(_EXECUTABLE)):
                    continue
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if facts.st_nlink > 1:
                    continue  # a run has it, or the trash: it would free nothing
                found.append((facts.st_mtime, facts.st_blocks * SECTOR_BYTES, name))
        found.sort()
        together = -(-len(found) // _MOST_LOOSE_A_SHARD)
        return [
            Loose(
                names="\n".join(name for _, _, name in found[at : at + together]),
                shard=shard,
                files=len(found[at : at + together]),
                bytes=sum(size for _, size, _ in found[at : at + together]),
                last_used=found[min(at + together, len(found)) - 1][0],
            )
            for at in range(0, len(found), max(together, 1))
        ]

    def _leave_out_if_linked(self, entry: "os.DirEntry[str]", number: int) -> None:
        """One to which more than its grounds link stays on the disk when they all go."""
        try:
            facts = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        if facts.st_nlink > 1 + len(self._holders[number]):
            size = facts.st_size
            large = size >= _LARGE_BYTES
            taken = facts.st_blocks * SECTOR_BYTES if large else (size + 4095) & ~4095
            self._bytes[number] -= taken
            self._counts[number] -= 1


def read_region(path: Path, first: int, last: int, grouped: bool) -> bytes:  # noqa: FBT001
    """The records of digests whose first byte is in that range. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        if (first, last) == (0, 256):
            return file.readall()
        if not grouped:
            data = file.readall()
            starts = range(0, len(data), RECORD.size)
            return b"".join(
                data[at : at + RECORD.size] for at in starts if first <= data[at] < last
            )
        fd = file.fileno()
        records = range(os.fstat(fd).st_size // RECORD.size)

        def group(record: int) -> int:
            return os.pread(fd, 1, record * RECORD.size)[0]

        begin, end = bisect_left(records, first, key=group), bisect_left(records, last, key=group)
        return _read_all(fd, begin * RECORD.size, end * RECORD.size)


def _read_all(fd: int, begin: int, end: int) -> bytes:
    chunks = []
    while begin < end and (chunk := os.pread(fd, end - begin, begin)):
        chunks.append(chunk)
        begin += len(chunk)
    return b"".join(chunks)


def _links(path: Path) -> int:
    try:
        return path.stat().st_size // RECORD.size
    except FileNotFoundError:
        return 0

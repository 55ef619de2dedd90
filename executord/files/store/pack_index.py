"""What lies where in a pack: an index of fixed-size columns, sorted by digest.

    16 bytes    "executord-pack1" and a line feed
    32 bytes    SHA-256 of the pack;  8 bytes its size;  4 bytes the number of objects
    an object   32 bytes of its digest, in ascending order;  then 4 of each one's offset;  then 4 of
                each one's size;  then 1 of each one's kind
    32 bytes    SHA-256 of all before

Numbers are little-endian. An object's digest says what its bytes are, so an index that lies can
only cost time: whatever is read is checked.
"""

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

_HEAD = struct.Struct("<16s32sQI")
_MAGIC = b"executord-pack1\n"
_DIGEST = 32
_ENTRY = _DIGEST + 4 + 4 + 1
MAX_INDEX_BYTES = 64 << 20
_WORTH_A_TABLE = 8


class Kind(IntEnum):
    BLOB = 0
    TREE = 1


class Location(NamedTuple):
    """Where an object's bytes lie: pack (64 hex digits), offset and size in bytes."""

    pack: str
    offset: int
    size: int


class BadIndexError(ValueError):
    """Bytes that are no pack's index."""


class PackIndex:
    """Raises BadIndexError for bytes that are none. Holds the bytes, and little more."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEAD.size + _DIGEST or len(data) > MAX_INDEX_BYTES:
            raise BadIndexError(f"{len(data)} bytes are no pack's index")
        if hashlib.sha256(memoryview(data)[:-_DIGEST]).digest() != data[-_DIGEST:]:
            raise BadIndexError("its checksum does not fit")
        magic, pack, self.pack_size, self.count = _HEAD.unpack_from(data)
        if magic != _MAGIC or len(data) != _HEAD.size + self.count * _ENTRY + _DIGEST:
            raise BadIndexError("it is of another form")
        self.pack: str = pack.hex()
        self.data = data
        self._offsets_at = _HEAD.size + self.count * _DIGEST
        self._sizes_at = self._offsets_at + self.count * 4
        self._table: dict[bytes, int] | None = None

    def find(self, wanted: Collection[bytes]) -> Iterator[tuple[bytes, Location]]:
        """Those of the digests that the pack holds."""
        if self._table is None and len(wanted) * _WORTH_A_TABLE < self.count:
            for digest in wanted:
                at = bisect_left(range(self.count), digest, key=self._digest)
                if at < self.count and self._digest(at) == digest:
                    yield digest, self._location(at)
            return
        table = self._as_table()
        for digest in self.held(wanted):
            yield digest, self._location(table[digest])

    def held(self, wanted: Collection[bytes]) -> Collection[bytes]:
        """As `find`, without saying where."""
        if self._table is None and len(wanted) * _WORTH_A_TABLE < self.count:
            return [digest for digest, _ in self.find(wanted)]
        every = self._table if self._table is not None else self._digests()
        return every.keys() & wanted if isinstance(every, dict) else every.intersection(wanted)

    def _digests(self) -> set[bytes]:
        data, start, end = self.data, _HEAD.size, self._offsets_at
        return {data[at : at + _DIGEST] for at in range(start, end, _DIGEST)}

    def forget_table(self) -> None:
        self._table = None

    def _as_table(self) -> dict[bytes, int]:
        if self._table is None:
            data, start, end = self.data, _HEAD.size, self._offsets_at
            self._table = {
                data[at : at + _DIGEST]: number
                for number, at in enumerate(range(start, end, _DIGEST))
            }
        return self._table

    def _digest(self, number: int) -> bytes:
        at = _HEAD.size + number * _DIGEST
        return self.data[at : at + _DIGEST]

    def _location(self, number: int) -> Location:
        (offset,) = struct.unpack_from("<I", self.data, self._offsets_at + 4 * number)
        (size,) = struct.unpack_from("<I", self.data, self._sizes_at + 4 * number)
        return Location(self.pack, offset, size)


class Packed(NamedTuple):
    digest: bytes
    offset: int
    size: int
    kind: Kind


def encode(pack: bytes, pack_size: int, objects: Sequence[Packed]) -> bytes:
    """`pack` is the pack's own digest, 32 bytes; each digest occurs once."""
    ordered = sorted(objects)
    count = len(ordered)
    body = b"".join(
        (
            _HEAD.pack(_MAGIC, pack, pack_size, count),
            *(entry.digest for entry in ordered),
            struct.pack(f"<{count}I", *(entry.offset for entry in ordered)),
            struct.pack(f"<{count}I", *(entry.size for entry in ordered)),
            bytes(entry.kind for entry in ordered),
        )
    )
    return body + hashlib.sha256(body).digest()

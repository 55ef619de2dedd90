"""Which blobs a snapshot or layer links to: 41 bytes each, grouped by the digests' first byte, so
that one can be looked up without reading them all.
"""

import mmap
import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from executord.files.cache.blobs import BlobKey
from executord.files.model import digests

GROUPED = 2  # as `About.records`; those of form 1 are in no order

_RECORD = struct.Struct(">32s?Q")
_RECORDS_IN_MEMORY = 100_000


class BlobRecords:
    """Collects them, the first hundred thousand in memory, the others in a file without a name
    below `folder`. Raises OSError.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._groups = [bytearray() for _ in range(256)]
        self._room = _RECORDS_IN_MEMORY
        self._spilt: IO[bytes] | None = None
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(256)]

    def add(self, digest: str, executable: bool, size: int) -> None:  # noqa: FBT001 - hot
        raw = bytes.fromhex(digest[7:])
        self._groups[raw[0]] += _RECORD.pack(raw, executable, size)
        self._room -= 1
        if not self._room:
            self._spill()

    def _spill(self) -> None:
        if self._spilt is None:
            self._spilt = TemporaryFile(dir=self._folder)  # noqa: SIM115 - until `close`
        for group, pieces in zip(self._groups, self._pieces, strict=True):
            pieces.append((self._spilt.tell(), len(group)))
            self._spilt.write(group)
            group.clear()
        self._room = _RECORDS_IN_MEMORY

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            for group, pieces in zip(self._groups, self._pieces, strict=True):
                for at, size in pieces:
                    assert self._spilt is not None
                    self._spilt.seek(at)
                    file.write(self._spilt.read(size))
                file.write(group)

    def close(self) -> None:
        if self._spilt is not None:
            self._spilt.close()


def read_records(path: Path) -> Iterator[tuple[BlobKey, int]]:
    with path.open("rb") as file:
        while data := file.read(_RECORD.size * 4096):
            for raw, executable, size in _RECORD.iter_unpack(data):
                yield BlobKey(digests.PREFIX + raw.hex(), executable), size


class RecordsLookup:
    """Whether grouped records have a blob. Raises OSError."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else None
        self._count = size // _RECORD.size
        self._begins: dict[int, int] = {}

    def __contains__(self, key: BlobKey) -> bool:
        if self._map is None:
            return False
        name = bytes.fromhex(key.digest[7:]) + (b"\1" if key.executable else b"\0")
        at, stop = self._begin_of(name[0]), self._begin_of(name[0] + 1)
        while (at := self._map.find(name, at, stop)) >= 0:
            if at % _RECORD.size == 0:
                return True
            at += 1
        return False

    def _begin_of(self, group: int) -> int:
        found = self._begins.get(group)
        if found is None:
            record = bisect_left(range(self._count), group, key=self._group)
            found = self._begins[group] = record * _RECORD.size
        return found

    def _group(self, record: int) -> int:
        assert self._map is not None
        return self._map[record * _RECORD.size]

    def close(self) -> None:
        if self._map is not None:
            self._map.close()

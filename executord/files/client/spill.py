"""Bytes put aside while a directory is walked: in a file that has no name, once they are many."""

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_IN_MEMORY_BYTES = 1 << 20


class Place(NamedTuple):
    offset: int
    length: int


class Spill:
    """For one thread. Raises OSError where there is no room. `folder` should be on a disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._fd = -1
        self._written = 0
        self._waiting = bytearray()

    @classmethod
    def of_file(cls, path: Path) -> "Spill":
        """What a file has, to be read only."""
        spill = cls()
        spill._hold(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        spill._written = os.fstat(spill._fd).st_size
        return spill

    @property
    def size(self) -> int:
        return self._written + len(self._waiting)

    def add(self, data: bytes) -> Place:
        place = Place(self.size, len(data))
        self._waiting += data
        if len(self._waiting) > _IN_MEMORY_BYTES:
            self._write()
        return place

    def read(self, place: Place) -> bytes:
        """Fewer bytes than asked for where it ends before."""
        offset, length = place
        if offset >= self._written:
            at = offset - self._written
            return bytes(self._waiting[at : at + length])
        return os.pread(self._fd, max(0, min(length, self._written - offset)), max(0, offset))

    def _write(self) -> None:
        if self._fd < 0:
            self._hold(_nameless(self._folder))
        data = memoryview(bytes(self._waiting))
        while data:
            written = os.pwrite(self._fd, data, self._written)
            self._written += written
            data = data[written:]
        self._waiting.clear()

    def _hold(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)


class SpillError(Exception):
    """What was put aside cannot be written, or not be read again."""


class SpilledObjects(Mapping[str, bytes]):
    """Objects by digest, of which only the places are in memory. Raises SpillError."""

    def __init__(self, folder: Path | None = None) -> None:
        self._spill = Spill(folder)
        self._places: dict[str, Place] = {}

    def add(self, digest: str, data: bytes) -> None:
        if digest not in self._places:
            try:
                self._places[digest] = self._spill.add(data)
            except OSError as error:
                raise SpillError(error.strerror) from error

    def only(self, digests: Iterable[str]) -> "SpilledObjects":
        """Some of them, in this order."""
        some = SpilledObjects()
        some._spill = self._spill
        some._places = {digest: self._places[digest] for digest in digests}
        return some

    def __getitem__(self, digest: str) -> bytes:
        place = self._places[digest]
        try:
            data = self._spill.read(place)
        except OSError as error:
            raise SpillError(error.strerror) from error
        if len(data) != place.length:
            raise SpillError("it was cut off")
        return data

    def __contains__(self, digest: object) -> bool:
        return digest in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _nameless(folder: Path | None) -> int:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())
    except OSError:
        if folder is None:
            raise
        return _nameless(None)

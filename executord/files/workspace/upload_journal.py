"""What Finishing has done already: which files were taken in, and what the store has confirmed.

An append-only file of fixed records in the run's home, so that a daemon that was killed goes on
with the next file instead of hashing it, or asking the store for it, again:

    taken      a mark (path and stat), the digest and size of the content, whether it is the base's
    confirmed  a range of records whose contents are in the store for certain, and since when

It saves work and is never needed: a record that is torn, or whose file has other marks now, is not
believed. So nothing is synced but now and then, after much work. Records are looked up in the order
in which they were written, which is the order of the walk; so memory is bounded by what the kernel
maps. Marks prove nothing while a run lives (a file changed by mmap shows no change in stat): a
journal belongs to one that has ended.
"""

import hashlib
import mmap
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from zlib import crc32

from executord.files.model import digests

_RECORD = struct.Struct(">4x1s?2x16sQ32s")
_CRC = struct.Struct(">I")
_RANGE = struct.Struct(">QQd")
_SIZE = _RECORD.size
_HEAD = b"H"
_TAKEN = b"T"
_BASE = b"B"
_CONFIRMED = b"C"
_VERSION = b"uploads-1\0"
_WINDOW = 4096
_SYNC_BYTES = 1 << 30
_BELIEVED_SECONDS = 86_400.0


class Note(NamedTuple):
    """A file that was taken in, to be written down. `of_base`: it is as the base has it."""

    mark: bytes
    digest: str
    size: int
    executable: bool
    of_base: bool = False


class Taken(NamedTuple):
    """What the journal knows of a file. `record` is the index of what says so; there is nothing to
    send of a file that is the base's.
    """

    record: int
    digest: str
    size: int
    executable: bool
    of_base: bool
    confirmed: bool


class UploadJournal:
    """One thread at a time. `store` is where the confirmations come from: those of another one,
    and those older than a day, do not count. Raises OSError.
    """

    def __init__(self, path: Path, store: str, *, now: float | None = None) -> None:
        self._now = time.time() if now is None else now
        self._head = _record(_HEAD, False, _short(_VERSION + store.encode()), 0, bytes(32))
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        self._ranges: list[tuple[int, int]] = []
        self._next = 1
        self._unsynced_bytes = 0
        self._map: mmap.mmap | None = None
        self._old = self._load()
        self._count = self._old

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- reading -----------------------------------------------------------------------------------

    def find(self, mark: bytes) -> Taken | None:
        """What an earlier try wrote under that mark."""
        if self._map is None or self._next >= self._old:
            return None
        begin = self._next * _SIZE
        end = min(self._old, self._next + _WINDOW) * _SIZE
        at = self._map.find(mark, begin, end)
        while at >= 0 and at % _SIZE != 8:
            at = self._map.find(mark, at + 1, end)
        if at < 0:
            return None
        index = at // _SIZE
        kind, executable, _, size, raw = _RECORD.unpack_from(self._map, index * _SIZE)
        if kind not in (_TAKEN, _BASE):
            return None
        self._next = index + 1
        return Taken(
            record=index,
            digest=digests.from_hex(raw.hex()),
            size=size,
            executable=executable,
            of_base=kind == _BASE,
            confirmed=any(first <= index < last for first, last in self._ranges),
        )

    def _load(self) -> int:
        """How many records can be believed: all before the first that is torn."""
        size = os.fstat(self._fd).st_size
        if size >= _SIZE:
            self._map = mmap.mmap(self._fd, size, prot=mmap.PROT_READ)
            if self._map[:_SIZE] == self._head:
                return self._sound(size // _SIZE)
            self._map.close()
            self._map = None
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, self._head)
        return 1

    def _sound(self, count: int) -> int:
        assert self._map is not None
        for index in range(1, count):
            record = self._map[index * _SIZE : (index + 1) * _SIZE]
            if _CRC.unpack_from(record)[0] != crc32(record[4:]):
                count = index
                break
            if record[4:5] == _CONFIRMED:
                first, last, at = _RANGE.unpack_from(record, 32)
                if 0 <= self._now - at < _BELIEVED_SECONDS:
                    self._ranges.append((first, last))
        os.ftruncate(self._fd, count * _SIZE)
        os.lseek(self._fd, count * _SIZE, os.SEEK_SET)
        return count

    # -- writing -----------------------------------------------------------------------------------

    def took(self, notes: Iterable[Note]) -> range:
        """Files that are blobs of this node now, or in the store; gives their records' indexes."""
        first = self._count
        self._append(b"".join(map(_record_of, notes)))
        return range(first, self._count)

    def confirmed(self, indexes: Iterable[int], sent_bytes: int) -> None:
        """The store holds what these records name, complete and durable."""
        ranges = [
            _record(_CONFIRMED, False, bytes(16), 0, _RANGE.pack(first, last, self._now) + bytes(8))
            for first, last in _ranges(indexes)
        ]
        self._append(b"".join(ranges))
        self._unsynced_bytes += sent_bytes
        if self._unsynced_bytes >= _SYNC_BYTES:
            os.fdatasync(self._fd)
            self._unsynced_bytes = 0

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._count += len(data) // _SIZE


def mark_of(path: str, facts: os.stat_result) -> bytes:
    """Changes whenever the file does: of its path, inode, size, mode and times."""
    text = (
        f"{facts.st_dev} {facts.st_ino} {facts.st_size} {facts.st_mode} "
        f"{facts.st_mtime_ns} {facts.st_ctime_ns}\0"
    )
    return _short(text.encode() + os.fsencode(path))


def _record_of(note: Note) -> bytes:
    kind = _BASE if note.of_base else _TAKEN
    raw = bytes.fromhex(digests.hex_of(note.digest))
    return _record(kind, note.executable, note.mark, note.size, raw)


def _short(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _record(kind: bytes, executable: bool, mark: bytes, size: int, raw: bytes) -> bytes:  # noqa: FBT001
    body = _RECORD.pack(kind, executable, mark, size, raw)[4:]
    return _CRC.pack(crc32(body)) + body


def _ranges(indexes: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for index in sorted(indexes):
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return found

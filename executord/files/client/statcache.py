"""What a client's files hashed to last time, so that a push reads only what has changed.

A file whose size, mode, times and inode are as they were is taken to be the same. One that was
touched within two seconds before it was hashed is not remembered: a later change may leave no
trace in its times (git calls that racy). A change through mmap shows in no time at all until it is
synced.

A directory is remembered as a whole: if its listing is as it was, so is everything made from it.
"""

import contextlib
import hashlib
import marshal
import os
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from executord.files.system import disk

_FORM = 2
RACY_NS = 2_000_000_000
DIGEST_BYTES = 32
UNKNOWN = bytes(DIGEST_BYTES)
_MOST_BYTES = 512 << 20

Mark = tuple[str, int, int, int, int, int]
"""Name, mode, size, mtime and ctime in ns, inode; of a directory only name and mode."""


class Directory(msgspec.Struct, array_like=True):
    """One directory below the pushed one, itself included.

    `listing` is its marks, packed; `hashes` a digest (32 bytes) for each, UNKNOWN for what has
    none; `is_whole` if no file lacks one. `tree`, `size` and `count` are what came out of it, with
    everything below; `files` and `content` (bytes) what lies directly in it; `below` the
    directories to go into, `skipped` what cannot be stored.
    """

    listing: bytes
    hashes: bytes
    is_whole: bool
    tree: str
    size: int
    count: int
    files: int
    content: int
    below: list[bytes]
    skipped: list[str]


class Remembered(NamedTuple):
    """A file as it was: what `stat` told of it, and its digest (32 bytes)."""

    mark: Mark
    digest: bytes


class _Written(msgspec.Struct, array_like=True):
    form: int
    ignore: bytes
    directories: dict[bytes, Directory]


_decoder = msgspec.msgpack.Decoder(_Written)


class StatCache:
    """One directory's. Losing it costs time, never correctness; so its errors are swallowed."""

    def __init__(self, directory: Path, cache_home: Path | None = None) -> None:
        home = cache_home if cache_home is not None else default_home()
        name = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:32]
        self._path = home / "stat-v1" / name
        self._ignore, self._before = self._load()
        self._now: dict[bytes, Directory] = {}

    @property
    def tree(self) -> str:
        """What the whole directory was when it was last pushed, "" if nobody knows."""
        root = self._before.get(b"")
        return root.tree if root is not None else ""

    def begin(self, ignore: bytes) -> None:
        """`ignore` identifies what is left out: under another, only digests are still good."""
        self._now = {}
        if ignore != self._ignore:
            self._ignore = ignore
            for record in self._before.values():
                record.listing, record.is_whole = _packed_apart(record.listing), False

    def directory(self, path: str) -> Directory | None:
        return self._before.get(os.fsencode(path))

    def remember(self, path: str, record: Directory) -> None:
        self._now[os.fsencode(path)] = record

    def forget(self, path: str) -> None:
        """A file changed while it was read: nothing that was seen in its directory counts."""
        parent = os.fsencode(path.rpartition("/")[0])
        self._now.pop(parent, None)
        self._before.pop(parent, None)

    def save(self) -> None:
        if self._now == self._before:
            return
        with contextlib.suppress(OSError):
            data = msgspec.msgpack.encode(_Written(_FORM, self._ignore, self._now))
            if len(data) > _MOST_BYTES:
                return
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk.write_whole(self._path, data, durable=False, mode=0o600)

    def keep(self) -> None:
        """For the next try of the same push."""
        self._before = self._now

    def _load(self) -> tuple[bytes, dict[bytes, Directory]]:
        try:
            if self._path.stat().st_size > _MOST_BYTES:
                return b"", {}
            written = _decoder.decode(self._path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return b"", {}
        usable = written.form == _FORM
        return (written.ignore, written.directories) if usable else (b"", {})


def pack(marks: list[Mark]) -> bytes:
    """The same bytes for the same marks."""
    return marshal.dumps(marks, 2)


def unpack(record: Directory) -> dict[str, Remembered]:
    """By name; empty where it is spoilt."""
    try:
        marks = marshal.loads(record.listing.lstrip(b"\0"))  # noqa: S302 - the user's own file
        return {
            mark[0]: Remembered(mark, record.hashes[at : at + DIGEST_BYTES])
            for mark, at in zip(marks, range(0, len(record.hashes), DIGEST_BYTES), strict=True)
        }
    except (ValueError, EOFError, TypeError, IndexError):
        return {}


def is_settled(mark: Mark) -> bool:
    """Whether a change from now on will show in its times."""
    return max(mark[3], mark[4]) + RACY_NS < time.time_ns()


def default_home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "executord"


def _packed_apart(listing: bytes) -> bytes:
    """One that equals no listing, and still says the same."""
    return b"\0" + listing

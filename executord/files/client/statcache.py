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
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from executord.files.client.spill import Place, Spill
from executord.files.system import disk

_FOLDER = "stat-v2"
_FORM = 3
RACY_NS = 2_000_000_000
DIGEST_BYTES = 32
UNKNOWN = bytes(DIGEST_BYTES)
_MOST_CONTENTS_BYTES = 512 << 20
_PIECE_BYTES = 1 << 20

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


class _Contents(msgspec.Struct, array_like=True):
    """The end of the file: where each directory's record lies in it."""

    form: int
    ignore: bytes
    tree: str
    places: dict[bytes, tuple[int, int]]


_TAIL = struct.Struct("<8sQ")
_MAGIC = b"exstat3\n"
_records = msgspec.msgpack.Decoder(Directory)
_contents = msgspec.msgpack.Decoder(_Contents)


class StatCache:
    """One directory's. Losing it costs time, never correctness; so its errors are swallowed.

    Records stay on disk, but for the one that is asked for.
    """

    def __init__(self, directory: Path, cache_home: Path | None = None) -> None:
        self.home = cache_home if cache_home is not None else default_home()
        name = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:32]
        self._path = self.home / _FOLDER / name
        self._old = Spill()
        self._ignore = b""
        self._is_other = False
        self._before: dict[bytes, Place] = {}
        self._load()
        self._begin_anew()

    @property
    def tree(self) -> str:
        """What the whole directory was when it was last pushed, "" if nobody knows."""
        return self._tree_before

    @property
    def has_same_patterns(self) -> bool:
        """Whether `begin` was told the same as the last time."""
        return not self._is_other

    def begin(self, ignore: bytes) -> None:
        """`ignore` identifies what is left out: under another, only digests are still good."""
        self._begin_anew()
        self._is_other = self._is_other or ignore != self._ignore
        self._ignore = ignore

    def directory(self, path: str) -> Directory | None:
        place = self._before.get(os.fsencode(path))
        if place is None:
            return None
        try:
            record = _records.decode(self._old.read(place))
        except (OSError, msgspec.MsgspecError):
            return None
        if self._is_other:
            record.listing, record.is_whole = _packed_apart(record.listing), False
        return record

    def remember(self, path: str, record: Directory, *, same: bool) -> None:
        """`same` if it is what `directory` gave."""
        raw = os.fsencode(path)
        if not raw:
            self._tree = record.tree
        place = self._before.get(raw)
        if same and place is not None and not self._is_other:
            self._now[raw] = (False, place)
            return
        self._is_changed = True
        try:
            self._now[raw] = (True, self._new.add(msgspec.msgpack.encode(record)))
        except OSError:
            self._now.pop(raw, None)

    def forget(self, path: str) -> None:
        """A file changed while it was read: nothing that was seen in its directory counts."""
        parent = os.fsencode(path.rpartition("/")[0])
        self._now.pop(parent, None)
        self._before.pop(parent, None)
        self._is_changed = True

    def save(self) -> None:
        if not self._is_changed and len(self._now) == len(self._before):
            return
        aside = self._path.with_name(f".{self._path.name}.{disk.unique_name()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                disk.write_new(aside, self._written(), mode=0o600)
                aside.rename(self._path)
            finally:
                aside.unlink(missing_ok=True)

    def keep(self) -> None:
        """For the next try of the same push."""
        together = Spill(self.home)
        places: dict[bytes, Place] = {}
        with contextlib.suppress(OSError):
            for path in self._now:
                places[path] = together.add(self._raw(path))
        self._old, self._before, self._is_other = together, places, False
        is_complete = b"" in places and len(places) == len(self._now)
        self._tree_before = self._tree if is_complete else ""
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._new = Spill(self.home)
        self._now: dict[bytes, tuple[bool, Place]] = {}
        self._tree = ""
        self._is_changed = False

    def _raw(self, path: bytes) -> bytes:
        is_new, place = self._now[path]
        return (self._new if is_new else self._old).read(place)

    def _written(self) -> Iterator[bytes]:
        places: dict[bytes, tuple[int, int]] = {}
        waiting = bytearray()
        offset = 0
        for path in self._now:
            data = self._raw(path)
            places[path] = (offset, len(data))
            offset += len(data)
            waiting += data
            if len(waiting) > _PIECE_BYTES:
                yield bytes(waiting)
                waiting.clear()
        yield bytes(waiting)
        tree = self._tree if b"" in places else ""
        yield msgspec.msgpack.encode(_Contents(_FORM, self._ignore, tree, places))
        yield _TAIL.pack(_MAGIC, offset)

    def _load(self) -> None:
        self._tree_before = ""
        try:
            old = Spill.of_file(self._path)
            end = old.size - _TAIL.size
            magic, start = _TAIL.unpack(old.read(Place(end, _TAIL.size)))
            if magic != _MAGIC or not 0 <= end - start <= _MOST_CONTENTS_BYTES:
                return
            contents = _contents.decode(old.read(Place(start, end - start)))
        except (OSError, msgspec.MsgspecError, struct.error, ValueError, OverflowError):
            return
        if contents.form != _FORM:
            return
        self._old, self._ignore, self._tree_before = old, contents.ignore, contents.tree
        self._before = {path: Place(*at) for path, at in contents.places.items()}


def pack(marks: list[Mark]) -> bytes:
    """The same bytes for the same marks."""
    return marshal.dumps(marks, 2)


def unpack(record: Directory) -> dict[Mark, bytes]:
    """The digest (32 bytes) for each mark; empty where it is spoilt."""
    try:
        marks = marshal.loads(record.listing.lstrip(b"\0"))  # noqa: S302 - the user's own file
        hashes = record.hashes
        starts = range(0, len(hashes), DIGEST_BYTES)
        return {
            mark: hashes[at : at + DIGEST_BYTES] for mark, at in zip(marks, starts, strict=True)
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

"""Snapshots: a tree as real directories, ready to be the lower layer of any number of runs.

    snapshots-v1/<hex of the tree>/root/       the files, linked to blobs
                                   about       what it holds, as JSON
                                   blobs       which blobs it links to, 41 bytes each
                                   trees       which trees it is made of, 32 bytes each

Built aside and renamed, so that one that is there is whole; never changed afterwards. Within one
snapshot no two paths share an inode, since a run could not copy one over the other ("same file").
"""

import errno
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.layout import Layout
from executord.files.faults import CancelledWorkError
from executord.files.model import digests
from executord.files.model.closure import Closure, key_of
from executord.files.model.trees import Entry, Tree
from executord.files.progress import Counter
from executord.files.system import disk
from executord.files.system.directories import Cursor

_RECORD = struct.Struct(">32s?Q")
_LOOK_UP_EVERY = 256
_DIRECTORY_MODE = 0o755


class MissingBlobError(Exception):
    """A blob that was here is gone: fetch it again."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot holds. `own_bytes` are those of directories and of files not linked."""

    files: int
    bytes: int
    directories: int
    own_bytes: int
    made_at: float
    made_in_seconds: float


class Snapshots:
    """Blocks; safe in any thread."""

    def __init__(self, layout: Layout, blobs: Blobs, owner: tuple[int, int]) -> None:
        self._layout = layout
        self._blobs = blobs
        self._owner = owner
        self._holders: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def pin(self, tree: str, holder: str) -> None:
        """It stays until `unpin`. Pin first, then look whether it is there."""
        with self._lock:
            self._holders.setdefault(tree, set()).add(holder)

    def unpin(self, holder: str) -> None:
        with self._lock:
            for tree in [tree for tree, held in self._holders.items() if holder in held]:
                self._holders[tree].discard(holder)
                if not self._holders[tree]:
                    del self._holders[tree]

    def pinned(self) -> dict[str, tuple[str, ...]]:
        """By tree, who holds it."""
        with self._lock:
            return {tree: tuple(sorted(held)) for tree, held in self._holders.items()}

    def find(self, tree: str) -> About | None:
        """None where there is none; costs the same whatever its size."""
        try:
            data = (self._home(tree) / "about").read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(data, type=About)
        except msgspec.MsgspecError:
            self._layout.throw_away(self._home(tree))  # not of our making: build it again
            return None

    def lower(self, tree: str) -> Path:
        return self._home(tree) / "root"

    def touch(self, tree: str) -> None:
        """It was used now."""
        os.utime(self._home(tree) / "about")

    def last_used(self, tree: str) -> float:
        return (self._home(tree) / "about").stat().st_mtime

    def all(self) -> dict[str, About]:
        found = {}
        for name in os.listdir(self._layout.snapshots):  # noqa: PTH208 - names are enough
            digest = digests.PREFIX + name
            about = self.find(digest) if digests.is_digest(digest) else None
            if about is not None:
                found[digest] = about
        return found

    def blobs_of(self, tree: str) -> Iterator[tuple[BlobKey, int]]:
        """The blobs it links to, with their sizes, each once."""
        data = (self._home(tree) / "blobs").read_bytes()
        for raw, executable, size in _RECORD.iter_unpack(data):
            yield BlobKey(digests.PREFIX + raw.hex(), executable), size

    def trees_of(self, tree: str) -> list[str]:
        data = (self._home(tree) / "trees").read_bytes()
        return [digests.PREFIX + data[at : at + 32].hex() for at in range(0, len(data), 32)]

    def throw_away(self, tree: str) -> bool:
        """False where it is pinned, or not there."""
        with self._lock:
            return tree not in self._holders and self._layout.throw_away(self._home(tree))

    def build(self, closure: Closure, counter: Counter, cancelled: threading.Event) -> About:
        """Raises MissingBlobError, CancelledWorkError, OSError; leaves nothing half-made."""
        began = time.monotonic()
        aside = self._layout.new_tmp()
        aside.mkdir(mode=0o700)
        try:
            build = _Build(aside / "root", closure, self._blobs, self._owner)
            build.run(counter, cancelled)
            about = About(
                files=closure.files,
                bytes=closure.bytes,
                directories=build.directories,
                own_bytes=build.own_bytes,
                made_at=time.time(),
                made_in_seconds=time.monotonic() - began,
            )
            (aside / "blobs").write_bytes(_records(build.linked))
            (aside / "trees").write_bytes(
                b"".join(bytes.fromhex(digests.hex_of(tree)) for tree in closure.trees)
            )
            (aside / "about").write_bytes(msgspec.json.encode(about))
            disk.sync_filesystem(aside)
            self._publish(aside, closure.root)
        except BaseException:
            self._layout.throw_away(aside)
            raise
        return about

    def _publish(self, aside: Path, tree: str) -> None:
        try:
            aside.rename(self._home(tree))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._layout.throw_away(aside)
        disk.sync_directory(self._layout.snapshots)

    def _home(self, tree: str) -> Path:
        return self._layout.snapshots / digests.hex_of(tree)


class _Build:
    """Makes one tree below a directory that does not exist yet."""

    def __init__(
        self, target: Path, closure: Closure, blobs: Blobs, owner: tuple[int, int]
    ) -> None:
        self._target = target
        self._closure = closure
        self._blobs = blobs
        self._owner = owner
        self.linked: dict[BlobKey, int] = {}
        self.directories = 0
        self.own_bytes = 0

    def run(self, counter: Counter, cancelled: threading.Event) -> None:
        self._target.mkdir(mode=_DIRECTORY_MODE)
        with Cursor(self._target) as cursor:
            stack = [self._begin(cursor, self._closure.root)]
            made = 0
            while stack:
                entry = next(stack[-1], None)
                if entry is None:
                    stack.pop()
                    if stack:
                        cursor.leave()
                elif entry.is_directory:
                    os.mkdir(entry.name, _DIRECTORY_MODE, dir_fd=cursor.fd)
                    cursor.enter(entry.name)
                    stack.append(self._begin(cursor, entry.digest))
                else:
                    self._make(cursor.fd, entry)
                    counter.add(1, entry.size)
                    made += 1
                    if made % _LOOK_UP_EVERY == 0 and cancelled.is_set():
                        raise CancelledWorkError

    def _begin(self, cursor: Cursor, digest: str) -> Iterator[Entry]:
        tree: Tree = self._closure.trees[digest]
        os.fchmod(cursor.fd, _DIRECTORY_MODE)
        disk.chown_if_needed(cursor.fd, self._owner)
        self.directories += 1
        self.own_bytes += disk.allocated(len(tree) * 64 + 1)
        return iter(tree)

    def _make(self, dir_fd: int, entry: Entry) -> None:
        if not entry.is_file:
            os.symlink(entry.target, entry.name, dir_fd=dir_fd)
            disk.chown_if_needed(entry.name, self._owner, dir_fd=dir_fd)
            return
        key = key_of(entry)
        path = self._blobs.path(key)
        try:
            if key in self.linked or not _link(path, entry.name, dir_fd):
                self._copy(path, entry, dir_fd)
            else:
                self.linked[key] = entry.size
        except FileNotFoundError as error:
            raise MissingBlobError(key.digest) from error

    def _copy(self, path: str, entry: Entry, dir_fd: int) -> None:
        mode = 0o755 if key_of(entry).executable else 0o644
        disk.copy_file(path, entry.name, target_dir=dir_fd, mode=mode)
        disk.chown_if_needed(entry.name, self._owner, dir_fd=dir_fd)
        self.own_bytes += disk.allocated(entry.size)


def _link(path: str, name: str, dir_fd: int) -> bool:
    """False where the inode has as many links as the filesystem allows."""
    try:
        os.link(path, name, dst_dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EMLINK:
            return False
        raise
    return True


def _records(linked: dict[BlobKey, int]) -> bytes:
    return b"".join(
        _RECORD.pack(bytes.fromhex(digests.hex_of(key.digest)), key.executable, size)
        for key, size in linked.items()
    )

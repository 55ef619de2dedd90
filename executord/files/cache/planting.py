"""Making directories of links to blobs: the files of a whole snapshot, or those of a layer.

No two paths that a run will see may share an inode, since it could not copy one over the other
("same file"). So of equal files only the first becomes a link, and the others get copies; in a
layer also where the layers below link to that blob already.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.records import BlobRecords
from executord.files.faults import corrupt
from executord.files.model.closure import key_of
from executord.files.model.trees import Entry, Kind
from executord.files.system import disk
from executord.files.system.directories import Cursor

OPAQUE = "user.overlay.opaque"

_FILE, _EXECUTABLE, _IS_DIRECTORY = Kind.FILE, Kind.EXECUTABLE, Kind.DIRECTORY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_MODE = 0o755
_LONGEST_PATH = 2048
_MANY_FILES = 8192
_MANY_BYTES = 512 << 20


class Bed(NamedTuple):
    """What is to be made of one directory, and in it. Its parents come before it."""

    path: str
    digest: str
    entries: Sequence[Entry]
    whiteouts: Sequence[str] = ()
    opaque: bool = False


class Absent(NamedTuple):
    """A file whose blob is not here."""

    path: str
    entry: Entry


class Planting:
    """Fills a directory that does not exist yet. Raises OSError.

    `held_below` tells whether what it will be laid over links to a blob: None for nothing below.
    `absent` are the files that could not be made; `make_absent` tries again.
    """

    def __init__(
        self,
        target: Path,
        blobs: Blobs,
        owner: tuple[int, int],
        *,
        held_below: Callable[[BlobKey], bool] | None = None,
    ) -> None:
        self._blobs = blobs
        self._owner = owner
        self._give_away = owner != (os.geteuid(), os.getegid())
        self._held_below = held_below
        self._linked: set[int] = set()
        self._trees: set[int] = set()
        self.records = BlobRecords(target.parent)
        self.tree_names = bytearray()
        self.absent: list[Absent] = []
        self._absent_bytes = 0
        self.directories = 0
        self.files = 0
        self.bytes = 0
        self.entries = 0
        self.own_bytes = 0
        self.own_inodes = 0
        target.mkdir(mode=_DIRECTORY_MODE)
        self._root = os.open(target, _DIRECTORY)
        self._source = os.open(blobs.root, _DIRECTORY)
        self._set_mode = stat.S_IMODE(os.fstat(self._root).st_mode) != _DIRECTORY_MODE

    @property
    def is_much_absent(self) -> bool:
        return len(self.absent) >= _MANY_FILES or self._absent_bytes >= _MANY_BYTES

    def make(self, bed: Bed) -> None:
        self._note_tree(bed.digest)
        fd = self._open(bed.path)
        try:
            if bed.opaque:
                os.setxattr(fd, OPAQUE, b"y")
            if self._set_mode:
                os.fchmod(fd, _DIRECTORY_MODE)
            if self._give_away:
                os.chown(fd, *self._owner)
            for name in bed.whiteouts:
                os.mknod(name, stat.S_IFCHR, dir_fd=fd)
            self._make_all(fd, bed)
        finally:
            os.close(fd)
        names = len(bed.entries) + len(bed.whiteouts)
        self.directories += 1
        self.entries += names
        self.own_inodes += 1 + len(bed.whiteouts)
        self.own_bytes += disk.allocated(names * 64 + 1)

    def _make_all(self, dir_fd: int, bed: Bed) -> None:
        """As `_make` for each of them, by a short way for the many that nobody else links to."""
        link, look, mkdir, source = os.link, os.stat, os.mkdir, self._source
        looks = self._held_below is not None
        linked, note = self._linked, self.records.add
        done = size = 0
        for entry in bed.entries:
            digest = entry.digest
            kind = entry.kind
            if kind is _FILE:
                mark, place = hash(digest), f"{digest[7:9]}/{digest[7:]}"
            elif kind is _EXECUTABLE:
                mark, place = ~hash(digest), f"{digest[7:9]}/{digest[7:]}-x"
            elif kind is _IS_DIRECTORY:
                mkdir(entry.name, _DIRECTORY_MODE, dir_fd=dir_fd)
                continue
            else:
                self._make(dir_fd, bed.path, entry)
                continue
            if mark in linked:
                self._make(dir_fd, bed.path, entry)
                continue
            try:
                if looks and look(place, dir_fd=source).st_nlink > 1:
                    self._make(dir_fd, bed.path, entry)
                    continue
                link(place, entry.name, src_dir_fd=source, dst_dir_fd=dir_fd, follow_symlinks=False)
            except OSError:
                self._make(dir_fd, bed.path, entry)
                continue
            linked.add(mark)
            note(digest, kind is _EXECUTABLE, entry.size)
            done += 1
            size += entry.size
        self.files += done
        self.bytes += size

    def make_absent(self) -> None:
        """After they were fetched. Those that are still not there are `absent` again."""
        waiting, self.absent, self._absent_bytes = self.absent, [], 0
        fd, path = -1, None
        try:
            for each in waiting:
                if each.path != path:
                    if fd >= 0:
                        os.close(fd)
                        fd = -1
                    fd, path = self._open(each.path), each.path
                self._make(fd, each.path, each.entry)
        finally:
            if fd >= 0:
                os.close(fd)

    def _note_tree(self, digest: str) -> None:
        mark = hash(digest)
        if mark not in self._trees:
            self._trees.add(mark)
            self.tree_names += bytes.fromhex(digest[7:])

    def _open(self, path: str) -> int:
        if len(path) < _LONGEST_PATH:
            return os.open(path or ".", _DIRECTORY, dir_fd=self._root)
        with Cursor(".", dir_fd=self._root) as cursor:
            for name in path.split("/"):
                cursor.enter(name)
            return os.dup(cursor.fd)

    def _make(self, dir_fd: int, path: str, entry: Entry) -> None:
        kind = entry.kind
        if kind is Kind.LINK:
            os.symlink(entry.target, entry.name, dir_fd=dir_fd)
            if self._give_away:
                os.chown(entry.name, *self._owner, dir_fd=dir_fd, follow_symlinks=False)
            self.own_inodes += 1
            self.files += 1
            return
        try:
            self._make_file(dir_fd, entry)
        except FileNotFoundError:
            self.absent.append(Absent(path, entry))
            self._absent_bytes += entry.size
        else:
            self.files += 1
            self.bytes += entry.size

    def _make_file(self, dir_fd: int, entry: Entry) -> None:
        key = key_of(entry)
        mark = ~hash(key.digest) if key.executable else hash(key.digest)
        copied = mark in self._linked
        if self._held_below is not None:
            facts = os.stat(key.place, dir_fd=self._source)
            if facts.st_nlink > 1:  # else nobody links to it
                copied = copied or self._held_below(key)
        if copied or not self._link(dir_fd, key.place, entry.name):
            self._copy(dir_fd, key, entry)
            return
        self._linked.add(mark)
        self.records.add(key.digest, key.executable, entry.size)

    def _link(self, dir_fd: int, place: str, name: str) -> bool:
        """False where the inode has as many links as the filesystem allows."""
        try:
            os.link(place, name, src_dir_fd=self._source, dst_dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EMLINK:
                return False
            raise
        return True

    def _copy(self, dir_fd: int, key: BlobKey, entry: Entry) -> None:
        mode = self._blobs.mode_of(key)
        source = os.open(key.place, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._source)
        try:
            size = disk.copy_file(source, entry.name, target_dir=dir_fd, mode=mode)
        finally:
            os.close(source)
        if size != entry.size:
            raise corrupt(f"{key.digest} is given two sizes, {size} and {entry.size} bytes.")
        disk.chown_if_needed(entry.name, self._blobs.owner, dir_fd=dir_fd)
        self.own_inodes += 1
        self.own_bytes += disk.allocated(size)

    def close(self) -> None:
        self.records.close()
        os.close(self._root)
        os.close(self._source)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

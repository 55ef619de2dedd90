"""From a person's directory to a tree: walked by descriptors, read where it has to be."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

from executord.files.client import statcache
from executord.files.client.spill import SpilledObjects
from executord.files.client.statcache import UNKNOWN, Directory, Mark, StatCache
from executord.files.model import digests, ignore, trees
from executord.files.model.trees import Entry
from executord.files.system.directories import (
    Cursor,
    NotRegularError,
    is_executable,
    open_regular,
    read_small,
    special_kind,
)

MAX_DEPTH = 512
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class Scanned:
    """`made` are the trees, but for those of directories that are as `without` had them; `paths`
    says where each was found first ("" or with a final slash). `fresh` has the files of the made
    ones that `without` did not have in that directory, by tree. `skipped` is what cannot be stored.
    """

    tree: str = ""
    without: str = ""
    made: SpilledObjects = field(default_factory=SpilledObjects)
    paths: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, list[Entry]] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    files_read: int = 0
    bytes_read: int = 0
    skipped: list[str] = field(default_factory=list)


OnFile = Callable[[int, int], None]
"""Told of files seen: their number, and their bytes."""


@dataclass(slots=True)
class _Frame:
    """A directory being walked. `record` is it as it was, `same` while nothing differs from that
    here or below.
    """

    name: str
    path: str
    record: Directory | None
    same: bool
    entries: list[Entry] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    seen: Directory | None = None
    fresh: list[Entry] = field(default_factory=list)


def scan(directory: Path, cache: StatCache, on_file: OnFile, *, without: str = "") -> Scanned:
    """`without` is a root tree whose parts need not be made again: if the cache knows it, only
    directories that changed since are. Raises OSError for what cannot be read, MovedError if it is
    moved meanwhile.
    """
    scanned = Scanned(
        without=without if without and cache.tree == without else "",
        made=SpilledObjects(cache.home),
    )
    with Cursor(directory.resolve()) as cursor:
        data = read_small(cursor.fd, ignore.FILE_NAME, ignore.MAX_BYTES)
        patterns = ignore.parse(data) if data is not None else ignore.NOTHING
        cache.begin(hashlib.sha256(data or b"").digest())
        scanned.skipped.extend(f"{ignore.FILE_NAME}: {text}" for text in patterns.problems)
        _Scan(cursor, cache, patterns, on_file, scanned).run()
    return scanned


class _Scan:
    def __init__(
        self,
        cursor: Cursor,
        cache: StatCache,
        patterns: ignore.Ignore,
        on_file: OnFile,
        scanned: Scanned,
    ) -> None:
        self._cursor = cursor
        self._cache = cache
        self._patterns = patterns
        self._has_same_patterns = cache.has_same_patterns
        self._on_file = on_file
        self._scanned = scanned

    def run(self) -> None:
        stack = [self._begin("", "")]
        while stack:
            frame = stack[-1]
            if frame.below:
                name = frame.below.pop()
                self._cursor.enter(name)
                stack.append(self._begin(name, f"{frame.path}{name}/"))
                continue
            stack.pop()
            done = self._end(frame)
            if not stack:
                self._scanned.tree = done.tree
                return
            self._cursor.leave()
            above = stack[-1]
            above.same = above.same and frame.same
            above.entries.append(
                Entry(
                    kind=trees.Kind.DIRECTORY,
                    name=frame.name,
                    digest=done.tree,
                    size=done.size,
                    count=done.count,
                )
            )

    def _begin(self, name: str, path: str) -> _Frame:
        record = self._cache.directory(path.rstrip("/"))
        marks = self._listing()
        packed = statcache.pack(marks)
        same = record is not None and record.listing == packed and record.is_whole
        frame = _Frame(name, path, record, same)
        if record is not None and same and self._scanned.without:
            frame.seen = record
            frame.below = [os.fsdecode(raw) for raw in record.below]
            self._scanned.files += record.files
            self._scanned.bytes += record.content
            self._on_file(record.files, record.content)
        else:
            self._look(frame, marks, packed)
            frame.same = False
        assert frame.seen is not None
        self._scanned.skipped.extend(frame.seen.skipped)
        return frame

    def _listing(self) -> list[Mark]:
        marks: list[Mark] = []
        take = marks.append
        with os.scandir(self._cursor.fd) as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    take((entry.name, stat.S_IFDIR, 0, 0, 0, 0))
                    continue
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # gone while we looked: the next push sees what it is then
                take(
                    (
                        entry.name,
                        facts.st_mode,
                        facts.st_size,
                        facts.st_mtime_ns,
                        facts.st_ctime_ns,
                        facts.st_ino,
                    )
                )
        return marks

    def _look(self, frame: _Frame, marks: list[Mark], packed: bytes) -> None:
        """File by file: those that are as they were are not read."""
        before = statcache.unpack(frame.record) if frame.record is not None else {}
        seen = Directory(packed, b"", True, "", 0, 0, 0, 0, [], [])
        frame.seen = seen
        hashes: list[bytes] = []
        files = content = 0
        for mark in marks:
            raw = before.get(mark, UNKNOWN)
            if raw == UNKNOWN or not self._is_file_still_in(frame.path, mark):
                raw = self._look_at(frame, mark)
            else:
                files += 1
                content += mark[2]
                frame.entries.append(_entry(mark, raw))
            hashes.append(raw)
        seen.files += files
        seen.content += content
        frame.below.sort(reverse=True)
        seen.below = [os.fsencode(name) for name in frame.below]
        seen.hashes = b"".join(hashes)
        self._scanned.files += seen.files
        self._scanned.bytes += seen.content
        self._on_file(seen.files, seen.content)
        if self._scanned.without and frame.record is None:
            frame.fresh = [entry for entry in frame.entries if entry.is_file]

    def _is_file_still_in(self, path: str, mark: Mark) -> bool:
        """Of one that was hashed: under the same patterns, it was not left out then either."""
        if not stat.S_ISREG(mark[1]):
            return False
        if self._has_same_patterns:
            return True
        return not self._patterns.matches(path + mark[0], is_directory=False)

    def _look_at(self, frame: _Frame, mark: Mark) -> bytes:
        """Take it in; gives what to remember of its content."""
        seen = frame.seen
        assert seen is not None
        name, mode = mark[0], mark[1]
        path = f"{frame.path}{name}"
        is_directory = stat.S_ISDIR(mode)
        if self._patterns.matches(path, is_directory=is_directory):
            return UNKNOWN
        try:
            if is_directory:
                if self._cursor.depth >= MAX_DEPTH:
                    seen.skipped.append(_skip(path, f"deeper than {MAX_DEPTH} directories"))
                else:
                    frame.below.append(name)
            elif stat.S_ISREG(mode):
                return self._file(frame, mark)
            elif stat.S_ISLNK(mode):
                target = os.readlink(name, dir_fd=self._cursor.fd)
                frame.entries.append(trees.link_entry(name, target))
                return hashlib.sha256(os.fsencode(target)).digest()
            else:
                seen.skipped.append(_skip(path, f"a {special_kind(mode)} cannot be stored"))
        except (FileNotFoundError, NotRegularError):
            seen.is_whole = False  # replaced while we looked
        return UNKNOWN

    def _file(self, frame: _Frame, mark: Mark) -> bytes:
        """Read and take it; gives what to remember of its content."""
        seen = frame.seen
        assert seen is not None
        name = mark[0]
        fd = open_regular(self._cursor.fd, name)
        try:
            facts = os.fstat(fd)
            raw, size = _hash(fd, facts.st_size)
        finally:
            os.close(fd)
        now = _mark(name, facts)
        settled = size == facts.st_size and mark == now and statcache.is_settled(mark)
        seen.is_whole = seen.is_whole and settled
        seen.files += 1
        seen.content += size
        entry = trees.file_entry(
            name, digests.PREFIX + raw.hex(), size, executable=is_executable(facts.st_mode)
        )
        frame.entries.append(entry)
        frame.fresh.append(entry)
        self._scanned.files_read += 1
        self._scanned.bytes_read += size
        return raw if settled else UNKNOWN

    def _end(self, frame: _Frame) -> Directory:
        seen = frame.seen
        assert seen is not None
        as_before = seen is frame.record
        if not frame.same:
            if seen is frame.record:
                # Only something below has changed: what lies here comes from the record.
                frame.entries.extend(self._entries_of(frame.record))
                seen, as_before = copy(seen), False
            seen.tree, data = trees.encode_listed(frame.entries)
            seen.size, seen.count = trees.totals(frame.entries)
            record = frame.record if self._scanned.without else None
            frame.same = record is not None and seen.tree == record.tree
            if not frame.same:
                self._scanned.made.add(seen.tree, data)
                self._scanned.paths.setdefault(seen.tree, frame.path)
                if frame.fresh and self._scanned.without:
                    self._scanned.fresh.setdefault(seen.tree, frame.fresh)
        self._cache.remember(frame.path.rstrip("/"), seen, same=as_before)
        return seen

    def _entries_of(self, record: Directory) -> Iterator[Entry]:
        for mark, raw in statcache.unpack(record).items():
            if raw == UNKNOWN:
                continue  # left out
            if stat.S_ISREG(mark[1]):
                yield _entry(mark, raw)
            elif stat.S_ISLNK(mark[1]):
                yield trees.link_entry(mark[0], os.readlink(mark[0], dir_fd=self._cursor.fd))


def _entry(mark: Mark, raw: bytes) -> Entry:
    kind = trees.Kind.EXECUTABLE if is_executable(mark[1]) else trees.Kind.FILE
    return Entry(kind, mark[0], "", digests.PREFIX + raw.hex(), mark[2])


def _mark(name: str, facts: os.stat_result) -> Mark:
    return (
        name,
        facts.st_mode,
        facts.st_size,
        facts.st_mtime_ns,
        facts.st_ctime_ns,
        facts.st_ino,
    )


def _skip(path: str, why: str) -> str:
    text = os.fsencode(path).decode(errors="backslashreplace")
    return f"{text}: {why}"


def _hash(fd: int, expected: int) -> tuple[bytes, int]:
    """The digest, and how many bytes were read; a file of the expected size takes one call."""
    chunk = os.read(fd, min(_CHUNK_BYTES, expected + 1))
    hasher = hashlib.sha256(chunk)
    size = len(chunk)
    while chunk and (size != expected or expected >= _CHUNK_BYTES):
        chunk = os.read(fd, _CHUNK_BYTES)
        hasher.update(chunk)
        size += len(chunk)
    return hasher.digest(), size

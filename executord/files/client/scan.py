"""From a person's directory to a tree: walked by descriptors, read where it has to be."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from executord.files.client.statcache import StatCache
from executord.files.model import digests, ignore, trees
from executord.files.model.trees import Entry
from executord.files.system.directories import (
    Cursor,
    NotRegularError,
    is_executable,
    open_regular,
    read_chunks,
    read_small,
    special_kind,
)

MAX_DEPTH = 512


@dataclass(frozen=True, slots=True)
class Place:
    """Where the content of a blob can be read: a path below the scanned directory."""

    path: str
    size: int


@dataclass(slots=True)
class Scanned:
    """`made` are all trees, `places` where each content lies, `skipped` what cannot be stored."""

    tree: str = ""
    made: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    files_read: int = 0
    bytes_read: int = 0
    skipped: list[str] = field(default_factory=list)


OnFile = Callable[[int, int], None]
"""Told of each file: one, and its bytes."""


@dataclass(slots=True)
class _Frame:
    name: str
    path: str
    entries: list[Entry] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)


def scan(directory: Path, cache: StatCache, on_file: OnFile) -> Scanned:
    """Raises OSError for what cannot be read, MovedError if it is moved meanwhile."""
    scanned = Scanned()
    with Cursor(directory.resolve()) as cursor:
        data = read_small(cursor.fd, ignore.FILE_NAME, ignore.MAX_BYTES)
        patterns = ignore.parse(data) if data is not None else ignore.NOTHING
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
        self._on_file = on_file
        self._scanned = scanned

    def run(self) -> None:
        stack = [self._begin("", "")]
        while stack:
            frame = stack[-1]
            if frame.directories:
                name = frame.directories.pop()
                self._cursor.enter(name)
                stack.append(self._begin(name, f"{frame.path}{name}/"))
                continue
            stack.pop()
            digest, data = trees.encode(frame.entries)
            self._scanned.made[digest] = data
            if not stack:
                self._scanned.tree = digest
                return
            self._cursor.leave()
            stack[-1].entries.append(trees.directory_entry(frame.name, digest, frame.entries))

    def _begin(self, name: str, path: str) -> _Frame:
        frame = _Frame(name, path)
        with os.scandir(self._cursor.fd) as listing:
            for entry in listing:
                self._take(frame, entry)
        frame.directories.sort(reverse=True)
        return frame

    def _take(self, frame: _Frame, found: os.DirEntry[str]) -> None:
        path = f"{frame.path}{found.name}"
        is_directory = found.is_dir(follow_symlinks=False)
        if self._patterns.matches(path, is_directory=is_directory):
            return
        if is_directory:
            if self._cursor.depth >= MAX_DEPTH:
                self._skip(path, f"deeper than {MAX_DEPTH} directories")
            else:
                frame.directories.append(found.name)
            return
        try:
            facts = found.stat(follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode):
                frame.entries.append(self._file(found.name, path, facts))
            elif stat.S_ISLNK(facts.st_mode):
                target = os.readlink(found.name, dir_fd=self._cursor.fd)
                frame.entries.append(trees.link_entry(found.name, target))
            else:
                self._skip(path, f"a {special_kind(facts.st_mode)} cannot be stored")
        except (FileNotFoundError, NotRegularError):
            return  # gone or replaced while we looked: the next push sees what it is then

    def _file(self, name: str, path: str, facts: os.stat_result) -> Entry:
        size = facts.st_size
        digest = self._cache.digest(path, facts)
        if digest is None:
            fd = open_regular(self._cursor.fd, name)
            try:
                facts = os.fstat(fd)
                digest, size = _hash(fd)
            finally:
                os.close(fd)
            if size == facts.st_size:
                self._cache.remember(path, facts, digest)
            self._scanned.files_read += 1
            self._scanned.bytes_read += size
        self._scanned.places.setdefault(digest, Place(path, size))
        self._scanned.files += 1
        self._scanned.bytes += size
        self._on_file(1, size)
        return trees.file_entry(name, digest, size, executable=is_executable(facts.st_mode))

    def _skip(self, path: str, why: str) -> None:
        text = os.fsencode(path).decode(errors="backslashreplace")
        self._scanned.skipped.append(f"{text}: {why}")


def _hash(fd: int) -> tuple[str, int]:
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in read_chunks(fd):
            size += len(chunk)
            yield chunk

    return digests.of_chunks(counted()), size

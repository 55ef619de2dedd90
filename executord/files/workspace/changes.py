"""From a run's upper directory and its base tree to the tree as the run left it.

Only the upper directory is read, so it costs what changed. Its contents are a stranger's: see
`directories`. In it a 0/0 character device is a deletion, and a directory with
`user.overlay.opaque=y` hides what was below (kernel: Documentation/filesystems/overlayfs.rst).
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from executord.core.reasons import Reason
from executord.files.faults import fault
from executord.files.model import ignore, trees
from executord.files.model.trees import EMPTY_TREE, Entry, Tree, TreeSource
from executord.files.system.directories import (
    Cursor,
    NotRegularError,
    is_executable,
    read_small,
    special_kind,
)

MAX_SKIPPED = 100
MAX_DEPTH = 512
MAX_ENTRIES = 5_000_000
_OPAQUE = "user.overlay.opaque"
_UNREADABLE = {
    errno.EINVAL,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENXIO,
    errno.ENOENT,
    errno.ENOTDIR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A regular file in the upper directory. `base` is what was there before, if it was a file."""

    dir_fd: int
    name: str
    path: str
    size: int
    executable: bool
    facts: os.stat_result
    base: Entry | None


class Skip(Exception):  # noqa: N818 - not an error: a verdict on one file
    """Leave the file out; the text says why."""


TakeFile = Callable[[Found], tuple[str, int]]
"""Gives digest and size. Raises Skip."""

ReadBase = Callable[[Entry], bytes]
"""The content of a small file of the base."""


@dataclass(slots=True)
class Merged:
    """`made` holds the trees that the base does not have (or that were looked at again)."""

    tree: str = ""
    made: dict[str, bytes] = field(default_factory=dict)
    root: Tree = ()
    skipped: list[str] = field(default_factory=list)
    skipped_count: int = 0
    entries: int = 0

    def skip(self, path: str, why: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(f"{_printable(path)}: {why}")


@dataclass(slots=True)
class _Frame:
    """One directory: `under` is the base's, `out` becomes the result's."""

    name: str
    path: str
    under: dict[str, Entry]
    out: dict[str, Entry]
    base_tree: str
    directories: list[str] = field(default_factory=list)


def merge(
    upper: Path,
    base_tree: str,
    source: TreeSource,
    *,
    take_file: TakeFile,
    read_base: ReadBase,
    whole: bool = False,
) -> Merged:
    """Raises FaultError, MovedError (only while the run lives), OSError.

    `whole`: the directory is no overlay's upper one but holds everything, and what is missing in
    it is deleted.
    """
    merged = Merged()
    with Cursor(upper) as cursor:
        patterns = _patterns(cursor.fd, source.tree(base_tree), read_base)
        for problem in patterns.problems:
            merged.skip(ignore.FILE_NAME, problem)
        _Merge(cursor, source, patterns, take_file, merged, whole=whole).run(base_tree)
    return merged


class _Merge:
    def __init__(
        self,
        cursor: Cursor,
        source: TreeSource,
        patterns: ignore.Ignore,
        take_file: TakeFile,
        merged: Merged,
        *,
        whole: bool,
    ) -> None:
        self._cursor = cursor
        self._source = source
        self._patterns = patterns
        self._take_file = take_file
        self._merged = merged
        self._whole = whole

    def run(self, base_tree: str) -> None:
        stack = [self._begin("", "", base_tree)]
        while stack:
            frame = stack[-1]
            if frame.directories:
                name = frame.directories.pop()
                path = f"{frame.path}{name}"
                below = frame.under.get(name)
                base = below.digest if below is not None and below.is_directory else EMPTY_TREE
                try:
                    self._cursor.enter(name)
                except OSError as error:
                    self._skip_unreadable(frame, name, path, error)
                    continue
                stack.append(self._begin(name, f"{path}/", base))
                continue
            stack.pop()
            digest, data = self._encode(frame)
            if data is not None:
                self._merged.made[digest] = data
            if not stack:
                self._merged.tree = digest
                self._merged.root = tuple(frame.out.values())
                return
            self._cursor.leave()
            entry = trees.directory_entry(frame.name, digest, frame.out.values())
            stack[-1].out[frame.name] = entry

    def _encode(self, frame: _Frame) -> tuple[str, bytes | None]:
        """No bytes for a directory that is as the base has it."""
        if frame.under and frame.out == frame.under:
            return frame.base_tree, None
        return trees.encode_listed(list(frame.out.values()))

    def _begin(self, name: str, path: str, base_tree: str) -> _Frame:
        under = {entry.name: entry for entry in self._source.tree(base_tree)}
        opaque = self._whole or _is_opaque(self._cursor.fd)
        frame = _Frame(name, path, under, {} if opaque else dict(under), base_tree)
        seen: set[str] = set()
        with os.scandir(self._cursor.fd) as listing:
            for entry in listing:
                seen.add(entry.name)
                self._merged.entries += 1
                if self._merged.entries > MAX_ENTRIES:
                    raise fault(
                        Reason.WORKSPACE_FAILED,
                        f"The run changed more than {MAX_ENTRIES} files and directories.",
                    )
                self._take(frame, entry)
        if opaque:
            self._keep_ignored(frame, seen)
        frame.directories.sort(reverse=True)
        return frame

    def _keep_ignored(self, frame: _Frame, seen: set[str]) -> None:
        """What is not synced back is not deleted either."""
        for name, base in frame.under.items():
            if name in seen:
                continue
            if self._patterns.matches(f"{frame.path}{name}", is_directory=base.is_directory):
                frame.out[name] = base

    def _take(self, frame: _Frame, found: os.DirEntry[str]) -> None:
        name = found.name
        path = f"{frame.path}{name}"
        try:
            facts = found.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # the run is alive, and was quicker
        mode = facts.st_mode
        base = frame.under.get(name)
        is_directory = stat.S_ISDIR(mode) or (base is not None and base.is_directory)
        if self._patterns.matches(path, is_directory=is_directory):
            if base is not None:
                frame.out[name] = base
            return
        if stat.S_ISCHR(mode) and facts.st_rdev == 0 and not self._whole:
            frame.out.pop(name, None)
        elif stat.S_ISDIR(mode):
            self._take_directory(frame, name, path)
        elif stat.S_ISREG(mode):
            self._take_regular(frame, found, facts, path)
        elif stat.S_ISLNK(mode):
            self._take_link(frame, name, path)
        else:
            frame.out.pop(name, None)
            self._merged.skip(path, f"a {special_kind(mode)} cannot be stored")

    def _take_directory(self, frame: _Frame, name: str, path: str) -> None:
        if self._cursor.depth >= MAX_DEPTH:
            frame.out.pop(name, None)
            self._merged.skip(path, f"deeper than {MAX_DEPTH} directories")
            return
        frame.directories.append(name)

    def _take_link(self, frame: _Frame, name: str, path: str) -> None:
        try:
            target = os.readlink(name, dir_fd=self._cursor.fd)
        except OSError as error:
            self._skip_unreadable(frame, name, path, error)
        else:
            frame.out[name] = trees.link_entry(name, target)

    def _take_regular(
        self, frame: _Frame, entry: os.DirEntry[str], facts: os.stat_result, path: str
    ) -> None:
        base = frame.under.get(entry.name)
        executable = is_executable(facts.st_mode)
        found = Found(
            dir_fd=self._cursor.fd,
            name=entry.name,
            path=path,
            size=facts.st_size,
            executable=executable,
            facts=facts,
            base=base if base is not None and base.is_file else None,
        )
        try:
            digest, size = self._take_file(found)
        except Skip as why:
            frame.out.pop(entry.name, None)
            self._merged.skip(path, str(why))
        except NotRegularError:
            frame.out.pop(entry.name, None)
            self._merged.skip(path, "changed into something else while it was read")
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            self._skip_unreadable(frame, entry.name, path, error)
        else:
            entry_now = trees.file_entry(entry.name, digest, size, executable=executable)
            frame.out[entry.name] = entry_now

    def _skip_unreadable(self, frame: _Frame, name: str, path: str, error: OSError) -> None:
        """What cannot be read stays as the base has it."""
        if error.errno not in _UNREADABLE:
            raise error
        if self._whole and name in frame.under:
            frame.out[name] = frame.under[name]
        self._merged.skip(path, f"cannot be read ({error.strerror})")


def _patterns(root_fd: int, root: Tree, read_base: ReadBase) -> ignore.Ignore:
    """The run's own `.dominoignore` if it touched that name, else the base's."""
    try:
        os.stat(ignore.FILE_NAME, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        base = next((entry for entry in root if entry.name == ignore.FILE_NAME), None)
        if base is None or not base.is_file or base.size > ignore.MAX_BYTES:
            return ignore.NOTHING
        return ignore.parse(read_base(base))
    data = read_small(root_fd, ignore.FILE_NAME, ignore.MAX_BYTES)
    return ignore.parse(data) if data is not None else ignore.NOTHING


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _printable(path: str) -> str:
    text = os.fsencode(path).decode(errors="backslashreplace")
    return text if len(text) <= 300 else f"{text[:150]}…{text[-150:]}"

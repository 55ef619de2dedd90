"""How every file of a run's directory looked to the kernel when it was made.

One record of fixed size for each entry of the tree, in the order of `tree_steps`; those of links
and directories stay zero. Whatever is not there, or torn, means "has to be looked at".
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from executord.files.model.trees import EMPTY_TREE, Entry, TreeSource
from executord.files.workspace.modes.tree_steps import starts_below

_RECORD = struct.Struct("<QqqI?")  # inode, mtime and ctime in ns, mode, whether it is read-only


class MarksWriter:
    """Makes the file, which must not exist."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)

    def write(self, number: int, facts: os.stat_result, *, read_only: bool) -> None:
        record = _RECORD.pack(
            facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_mode, read_only
        )
        os.pwrite(self._fd, record, number * _RECORD.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)


@dataclass(slots=True)
class _Level:
    """A directory of the tree: its entries with their numbers, its records, what is below it."""

    entries: dict[str, tuple[int, Entry]]
    starts: dict[str, int]
    records: bytes


class Marks:
    """Looks records up by path; quick for the files of one directory after the other.

    `run_user` is the one whose files the run may write.
    """

    def __init__(self, path: Path, tree: str, source: TreeSource, run_user: int) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._fd = -1
        self._source = source
        self._run_user = run_user
        self._levels = [self._load(tree, 0)]
        self._names: list[str] = []
        self._parent: str = ""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_untouched(self, path: str, facts: os.stat_result) -> bool:
        """Whether the file of the tree is at its path and was not written since.

        A file that the run may not write is known by its inode: its times change whenever another
        run links to it, but only its owner could put another content into it.
        """
        parent, _, name = path.rpartition("/")
        if parent != self._parent:
            self._go(parent)
        level = self._levels[-1] if len(self._levels) == len(self._names) + 1 else None
        found = level.entries.get(name) if level is not None else None
        if level is None or found is None or not found[1].is_file:
            return False
        record = level.records[found[0] * _RECORD.size : (found[0] + 1) * _RECORD.size]
        if len(record) < _RECORD.size or found[1].size != facts.st_size:
            return False
        inode, mtime_ns, ctime_ns, mode, read_only = _RECORD.unpack(record)
        if (inode, mode) != (facts.st_ino, facts.st_mode):
            return False
        if read_only:
            return facts.st_uid != self._run_user
        return (mtime_ns, ctime_ns) == (facts.st_mtime_ns, facts.st_ctime_ns)

    def _go(self, parent: str) -> None:
        """Keep the levels that both paths share; `_levels` ends early where the tree does."""
        names = parent.split("/") if parent else []
        shared = 0
        for old, new in zip(self._names, names, strict=False):
            if old != new:
                break
            shared += 1
        del self._levels[shared + 1 :]
        for name in names[len(self._levels) - 1 :]:
            above = self._levels[-1]
            if name not in above.starts:
                break
            self._levels.append(self._load(above.entries[name][1].digest, above.starts[name]))
        self._names, self._parent = names, parent

    def _load(self, digest: str, first: int) -> _Level:
        tree = () if digest == EMPTY_TREE else self._source.tree(digest)
        records = b""
        if self._fd >= 0:
            records = os.pread(self._fd, len(tree) * _RECORD.size, first * _RECORD.size)
        return _Level(
            {entry.name: (position, entry) for position, entry in enumerate(tree)},
            {entry.name: start for entry, start in starts_below(tree, first)},
            records,
        )

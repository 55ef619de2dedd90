"""Workspaces that outlive their runs: what could not be stored stays until somebody decides.

They count as disk use like everything else here, and nothing ever takes them away but a later
`sync` or an operator's word.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from executord.files.system.directories import Cursor
from executord.files.workspace.changed import UpperDirectory
from executord.files.workspace.workspace import Workspaces
from executord.ports import KeptWorkspace

_BLOCK_BYTES = 512


def kept_workspaces(workspaces: Workspaces) -> Sequence[KeptWorkspace]:
    """Each is walked; nobody changes them any more. Raises OSError."""
    found = []
    for lease in workspaces.leases():
        if lease.kept:
            size, inodes = disk_use(workspaces.home(lease.run))
            found.append(
                KeptWorkspace(
                    run_id=lease.run,
                    bytes=size,
                    inodes=inodes,
                    made_at=lease.made_at,
                    is_empty=_is_empty(workspaces, lease.run),
                )
            )
    return found


def _is_empty(workspaces: Workspaces, run_id: str) -> bool:
    """Whether nothing was changed, as far as that shows at once: in an overlay."""
    changed = workspaces.changed(run_id)
    return isinstance(changed, UpperDirectory) and not any(changed.top.iterdir())


def disk_use(home: Path) -> tuple[int, int]:
    """Bytes allocated and inodes below a directory, each file once however many names it has."""
    with Cursor(home) as cursor:
        measure = _Measure()
        stack = [measure.directory(cursor)]
        while stack:
            if not stack[-1]:
                stack.pop()
                if stack:
                    cursor.leave()
                continue
            cursor.enter(stack[-1].pop())
            stack.append(measure.directory(cursor))
    return measure.bytes, measure.inodes


class _Measure:
    def __init__(self) -> None:
        self.bytes = 0
        self.inodes = 0
        self._linked: set[tuple[int, int]] = set()

    def directory(self, cursor: Cursor) -> list[str]:
        """Counts what is right here; gives the names of the directories."""
        self._add(os.fstat(cursor.fd))
        names = []
        with os.scandir(cursor.fd) as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                else:
                    self._add(entry.stat(follow_symlinks=False))
        return names

    def _add(self, facts: os.stat_result) -> None:
        if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
            identity = (facts.st_dev, facts.st_ino)
            if identity in self._linked:
                return
            self._linked.add(identity)
        self.bytes += facts.st_blocks * _BLOCK_BYTES
        self.inodes += 1

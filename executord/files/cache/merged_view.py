"""Directories on top of each other, read as overlayfs shows them to a run.

A whiteout (a character device 0:0) hides the name below, an opaque directory all that lies below
it, a file any directory of that name. Nothing is followed; two descriptors a layer are open at
most, whatever the depth.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from executord.files.system.directories import Cursor

OPAQUE = "user.overlay.opaque"


class Shown(NamedTuple):
    """What a name shows: its facts, and in which directory (0 is the top one) it really lies."""

    layer: int
    facts: os.stat_result


class MergedView:
    """Stands in one directory; `enter` and `leave` move it. Raises OSError, MovedError."""

    def __init__(self, lowers: Sequence[Path]) -> None:
        self._cursors: list[Cursor] = []
        try:
            self._cursors.extend(Cursor(lower) for lower in lowers)
        except BaseException:
            self.close()
            raise
        self._active = [list(range(len(lowers)))]
        self._below: list[dict[str, list[int]]] = [{}]

    def fd(self, layer: int) -> int:
        return self._cursors[layer].fd

    @property
    def top(self) -> int:
        """The layer whose owner and mode this directory shows."""
        return self._active[-1][0]

    def listing(self) -> dict[str, Shown]:
        """All names that are shown here."""
        active = self._active[-1]
        if len(active) == 1:
            shown = self._listing_of_one(active[0])
        else:
            shown = self._listing_of_many(active)
        return shown

    def enter(self, name: str) -> None:
        """Into a directory that the last `listing` of this one has shown."""
        layers = self._below[-1].get(name) or [self._active[-1][0]]
        for layer in layers:
            self._cursors[layer].enter(name)
        self._active.append(layers)
        self._below.append({})

    def leave(self) -> None:
        for layer in self._active.pop():
            self._cursors[layer].leave()
        self._below.pop()

    def _listing_of_one(self, layer: int) -> dict[str, Shown]:
        with os.scandir(self._cursors[layer].fd) as entries:
            found = {
                entry.name: Shown(layer, entry.stat(follow_symlinks=False)) for entry in entries
            }
        hidden = [name for name, shown in found.items() if _is_whiteout(shown.facts)]
        for name in hidden:
            del found[name]
        return found

    def _listing_of_many(self, active: Sequence[int]) -> dict[str, Shown]:
        found: dict[str, Shown] = {}
        below: dict[str, list[int]] = {}
        closed: set[str] = set()
        for layer in active:
            fd = self._cursors[layer].fd
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = entry.name
                    if name in closed:
                        continue
                    facts = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(facts.st_mode):
                        closed.add(name)
                        if name not in found and not _is_whiteout(facts):
                            found[name] = Shown(layer, facts)
                        continue
                    found.setdefault(name, Shown(layer, facts))
                    below.setdefault(name, []).append(layer)
                    if layer != active[-1] and _is_opaque(fd, name):
                        closed.add(name)
        self._below[-1] = below
        return found

    def close(self) -> None:
        for cursor in self._cursors:
            cursor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_whiteout(facts: os.stat_result) -> bool:
    return stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0


def _is_opaque(dir_fd: int, name: str) -> bool:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return os.getxattr(fd, OPAQUE) == b"y"
    except OSError:
        return False
    finally:
        os.close(fd)

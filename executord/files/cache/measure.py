"""What a directory takes on disk, read from the disk itself: blocks and inodes, not sizes."""

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from executord.core.eviction import Space
from executord.files.system.directories import Cursor, MovedError

SECTOR_BYTES = 512  # what st_blocks counts, whatever the filesystem's own blocks are

_REST_EVERY = 256


def measure(
    path: str | Path,
    *,
    with_links: bool,
    rest: Callable[[], None] | None = None,
    most_inodes: int = 0,
) -> Space:
    """Of everything below, and of itself; what vanishes meanwhile is left out.

    A file with several links is counted, once, only where all of them are below, and never unless
    `with_links`: in a snapshot they are links to blobs. `rest` is called now and then. It stops at
    about `most_inodes`, where that is not 0. Nothing is followed, and any depth is fine. Raises
    OSError where there is no such directory.
    """
    with Cursor(path) as cursor:
        walk = _Walk(with_links=with_links, rest=rest)
        walk.count(os.fstat(cursor.fd))
        stack = [walk.look(cursor.fd)]
        while stack:
            if not stack[-1]:
                stack.pop()
                if stack:
                    try:
                        cursor.leave()
                    except (MovedError, OSError):
                        break  # somebody takes it away while we look
                continue
            if most_inodes and walk.inodes >= most_inodes:
                break
            with contextlib.suppress(OSError):
                cursor.enter(stack[-1].pop())
                stack.append(walk.look(cursor.fd))
        return Space(walk.bytes, walk.inodes)


class _Walk:
    def __init__(self, *, with_links: bool, rest: Callable[[], None] | None) -> None:
        self._with_links = with_links
        self._rest = rest
        self._links: dict[int, int] = {}
        self._looked_at = 0
        self.bytes = 0
        self.inodes = 0

    def look(self, fd: int) -> list[str]:
        """Count what is in a directory; gives its directories."""
        below = []
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(facts.st_mode):
                    below.append(entry.name)
                    self.count(facts)
                elif facts.st_nlink == 1 or (self._with_links and self._is_last(facts)):
                    self.count(facts)
                self._looked_at += 1
                if self._rest is not None and self._looked_at % _REST_EVERY == 0:
                    self._rest()
        return below

    def _is_last(self, facts: os.stat_result) -> bool:
        """Of the links to it; each is met once."""
        met = self._links.pop(facts.st_ino, 0) + 1
        if met < facts.st_nlink:
            self._links[facts.st_ino] = met
        return met >= facts.st_nlink

    def count(self, facts: os.stat_result) -> None:
        self.inodes += 1
        self.bytes += facts.st_blocks * SECTOR_BYTES

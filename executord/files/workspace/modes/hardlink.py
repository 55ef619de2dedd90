"""Links to blobs that the run may only read, and private copies of what it may write.

The blobs belong to the daemon, not to the run's user, and nobody may write them: so nothing that
the run does through its link reaches the cache. The second file of equal content is a copy, since
a run could not move one over the other ("same file"); so is one too many for the file system.
"""

import errno
import os
from dataclasses import dataclass

from executord.files.model import digests, ignore
from executord.files.system import disk
from executord.files.workspace.modes.copy import private_copy
from executord.files.workspace.modes.mode import ModeName
from executord.files.workspace.modes.placing import Place

_FILTER_BITS_AN_ENTRY = 32


@dataclass(frozen=True, slots=True)
class Hardlinks:
    """`owner` is the run's user and group, `keeper` those of the blobs, which must be others'.

    `writable` are gitignore patterns of what the run may write.
    """

    owner: tuple[int, int]
    keeper: tuple[int, int]
    writable: ignore.Ignore

    @property
    def name(self) -> ModeName:
        return "hardlink"

    def begin(self, entries: int) -> "LinkedFiles":
        return LinkedFiles(self, entries)

    def new_bytes(self, size: int) -> int:  # noqa: ARG002 - what is writable is not known yet
        return 0


class LinkedFiles:
    """Remembers which contents are linked, at most 4 bytes an entry: a wrong yes is a copy more."""

    def __init__(self, hardlinks: Hardlinks, entries: int) -> None:
        self._owner = hardlinks.owner
        self._keeper = hardlinks.keeper
        self._writable = hardlinks.writable
        self._filter = bytearray((entries + 1) * _FILTER_BITS_AN_ENTRY // 8)

    def place(self, blob: str, place: Place) -> bool:
        if self._writable.matches(place.path, is_directory=False):
            private_copy(blob, place, self._owner)
            return False
        if self._is_second(place) or not _link(blob, place):
            name = place.entry.name
            mode = read_only(place.mode)
            disk.copy_file(blob, name, target_dir=place.dir_fd, mode=mode)
            disk.chown_if_needed(name, self._keeper, dir_fd=place.dir_fd)
        return True

    def _is_second(self, place: Place) -> bool:
        """Two bits for each content, from the digest itself."""
        name = digests.hex_of(place.entry.digest)
        value = int(name[:32], 16) ^ place.mode
        size = len(self._filter) * 8
        known = True
        for bit in (value % size, (value >> 64) % size):
            mask = 1 << (bit & 7)
            known = known and bool(self._filter[bit >> 3] & mask)
            self._filter[bit >> 3] |= mask
        return known


def read_only(mode: int) -> int:
    return mode & 0o555


def _link(blob: str, place: Place) -> bool:
    """False where the inode has as many links as the file system allows."""
    try:
        os.link(blob, place.entry.name, dst_dir_fd=place.dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EMLINK:
            return False
        raise
    return True

"""Looking at what a run has changed, without taking anything in."""

import os
from collections.abc import Mapping

from executord.files.model import digests, trees
from executord.files.model.trees import Tree, TreeSource
from executord.files.system.directories import open_regular, read_chunks
from executord.files.workspace.changes import Found

_LIVE_HASH_BYTES = 16 << 20


class Combined:
    """Trees just made, then those of the node and the store."""

    def __init__(self, made: Mapping[str, bytes], others: TreeSource) -> None:
        self._made = made
        self._others = others

    def tree(self, digest: str) -> Tree:
        data = self._made.get(digest)
        return trees.decode_checked(data) if data is not None else self._others.tree(digest)


def look_at(found: Found) -> tuple[str, int]:
    """For a live view: the true digest where that is cheap, else one that differs."""
    base = found.base
    if base is not None and base.size == found.size and found.size <= _LIVE_HASH_BYTES:
        fd = open_regular(found.dir_fd, found.name)
        try:
            return digests.of_chunks(read_chunks(fd)), found.size
        finally:
            os.close(fd)
    facts = found.facts
    stand_in = f"{facts.st_dev} {facts.st_ino} {facts.st_mtime_ns} {facts.st_size}"
    return digests.of_bytes(stand_in.encode()), found.size

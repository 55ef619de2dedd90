"""What a scanned directory has that its base in the store has not."""

from collections.abc import Iterator
from typing import NamedTuple

from executord.files.client.scan import Scanned
from executord.files.model import digests, trees
from executord.files.model.trees import EMPTY_TREE, Tree
from executord.files.store.store import Store

_PREFIX = len(digests.PREFIX)


class Place(NamedTuple):
    """Where the content of a blob can be read: a path below the scanned directory."""

    path: str
    size: int


class NewObjects:
    """`trees` is complete when `places` has been gone through."""

    def __init__(self, store: Store, scanned: Scanned, base_tree: str) -> None:
        self._store = store
        self._scanned = scanned
        self._base_tree = base_tree
        self._seen: set[bytes] = set()
        self.trees: dict[str, None] = {}

    def places(self) -> Iterator[tuple[str, Place]]:
        """Each new content once, in the order in which a reader of the tree will want them: level
        by level. Only what differs from the base is walked.
        """
        level = [(self._base_tree, self._scanned.tree)]
        while level:
            level = [
                (old, new)
                for old, new in dict.fromkeys(level)
                if old != new and new not in self.trees and new in self._scanned.made
            ]
            before = self._trees_before(level)
            below: list[tuple[str, str]] = []
            for old, new in level:
                if new in self.trees:
                    continue
                self.trees[new] = None
                yield from self._look(before.get(old, ()), new, below)
            level = below

    def _look(
        self, before: Tree, new: str, below: list[tuple[str, str]]
    ) -> Iterator[tuple[str, Place]]:
        subtrees = {entry.name: entry.digest for entry in before if entry.is_directory}
        known = {_raw(entry.digest) for entry in before if entry.is_file}
        hashes = self._scanned.known.get(new, b"")
        known.update(hashes[at : at + 32] for at in range(0, len(hashes), 32))
        path = self._scanned.paths[new]
        for entry in trees.decode(self._scanned.made[new]):
            if entry.is_directory:
                below.append((subtrees.get(entry.name, EMPTY_TREE), entry.digest))
            elif entry.is_file:
                raw = _raw(entry.digest)
                if raw not in known and raw not in self._seen:
                    self._seen.add(raw)
                    yield entry.digest, Place(f"{path}{entry.name}", entry.size)

    def _trees_before(self, level: list[tuple[str, str]]) -> dict[str, Tree]:
        """None are needed where the scan has already left out what the base has."""
        if self._scanned.without == self._base_tree:
            return {}
        wanted = list(dict.fromkeys(old for old, _ in level if old != EMPTY_TREE))
        return self._store.trees(wanted) if wanted else {}


def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest[_PREFIX:])

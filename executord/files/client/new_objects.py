"""What a scanned directory has that its base in the store has not."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from executord.files.client.scan import Scanned
from executord.files.model import trees
from executord.files.model.trees import EMPTY_TREE, Entry, Tree
from executord.files.store.store import Store


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
        self.trees: dict[str, None] = {}

    def places(self) -> Iterator[tuple[str, Place]]:
        """Each new content, some more than once, in the order in which a reader of the tree will
        want them: level by level. Only what differs from the base is walked.
        """
        if self._scanned.without == self._base_tree:
            return self._as_scanned()
        return self._compared()

    def _as_scanned(self) -> Iterator[tuple[str, Place]]:
        """The scan has left out what the base has."""
        paths = self._scanned.paths
        for tree in sorted(self._scanned.made, key=lambda tree: paths[tree].count("/")):
            self.trees[tree] = None
            yield from _placed(paths[tree], self._scanned.fresh.get(tree, ()))

    def _compared(self) -> Iterator[tuple[str, Place]]:
        level = [(self._base_tree, self._scanned.tree)]
        while level:
            level = [
                (old, new)
                for old, new in dict.fromkeys(level)
                if old != new and new not in self.trees and new in self._scanned.made
            ]
            wanted = list(dict.fromkeys(old for old, _ in level if old != EMPTY_TREE))
            before = self._store.trees(wanted) if wanted else {}
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
        known = {entry.digest for entry in before if entry.is_file}
        entries = trees.decode_checked(self._scanned.made[new])
        below.extend(
            (subtrees.get(entry.name, EMPTY_TREE), entry.digest)
            for entry in entries
            if entry.is_directory
        )
        fresh = [entry for entry in entries if entry.is_file and entry.digest not in known]
        yield from _placed(self._scanned.paths[new], fresh)


def _placed(path: str, files: Sequence[Entry]) -> Iterator[tuple[str, Place]]:
    for entry in files:
        yield entry.digest, Place(f"{path}{entry.name}", entry.size)

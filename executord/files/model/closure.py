"""Everything below a root tree: its directories, and the blobs they need."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from executord.files.cache.blobs import BlobKey
from executord.files.faults import CancelledWorkError, corrupt
from executord.files.model.trees import Entry, Kind, Tree, totals

MAX_ENTRIES = 10_000_000
MAX_DEPTH = 1024


@dataclass(frozen=True, slots=True)
class Closure:
    """`trees` by digest, each once however often it occurs; `blobs` with their sizes.

    `files` counts every occurrence of a file or link, `bytes` all of their content.
    """

    root: str
    trees: Mapping[str, Tree]
    blobs: Mapping[BlobKey, int]
    files: int
    bytes: int


Get = Callable[[Iterable[str]], Mapping[str, Tree]]


@dataclass(slots=True)
class _Walk:
    trees: dict[str, Tree] = field(default_factory=dict)
    blobs: dict[BlobKey, int] = field(default_factory=dict)


def key_of(entry: Entry) -> BlobKey:
    return BlobKey(entry.digest, entry.kind is Kind.EXECUTABLE)


def load(root: str, get: Get, cancelled: threading.Event | None = None) -> Closure:
    """Level by level, asking `get` for many trees at once.

    What a directory says of the size of its children is checked against them, so that the totals
    of the root can be trusted before anything is made of it: a small graph that unfolds into
    more than MAX_ENTRIES is refused. Raises FaultError.
    """
    walk = _Walk()
    wanted: dict[str, Entry | None] = {root: None}
    depth = 0
    while wanted:
        if cancelled is not None and cancelled.is_set():
            raise CancelledWorkError
        if depth > MAX_DEPTH:
            raise corrupt(f"The tree {root} is deeper than {MAX_DEPTH} directories.")
        level = get(wanted)
        below: dict[str, Entry | None] = {}
        for digest, expected in wanted.items():
            _take(walk, digest, level[digest], expected, below)
        wanted = {digest: entry for digest, entry in below.items() if digest not in walk.trees}
        depth += 1
    size, count = totals(walk.trees[root])
    return Closure(root, walk.trees, walk.blobs, count - _directories(walk, root), size)


def _take(
    walk: _Walk,
    digest: str,
    tree: Tree,
    expected: Entry | None,
    below: dict[str, Entry | None],
) -> None:
    size, count = totals(tree)
    if expected is not None and (size, count) != (expected.size, expected.count):
        raise corrupt(f"The tree {digest} is not as large as its parent says.")
    if count > MAX_ENTRIES:
        raise corrupt(f"The tree {digest} has more than {MAX_ENTRIES} entries.")
    walk.trees[digest] = tree
    for entry in tree:
        if entry.is_directory:
            _check_same(walk, entry, below)
            below[entry.digest] = entry
        elif entry.is_file:
            known = walk.blobs.setdefault(key_of(entry), entry.size)
            if known != entry.size:
                raise corrupt(f"{entry.digest} is given two sizes in {digest}.")


def _check_same(walk: _Walk, entry: Entry, below: Mapping[str, Entry | None]) -> None:
    """A tree that occurs twice has to be given the same size each time."""
    known = below.get(entry.digest)
    said = (known.size, known.count) if known else None
    if said is None and entry.digest in walk.trees:
        said = totals(walk.trees[entry.digest])
    if said is not None and said != (entry.size, entry.count):
        raise corrupt(f"The tree {entry.digest} is given two sizes.")


def _directories(walk: _Walk, root: str) -> int:
    """How many directories lie below the root, each occurrence counted."""
    counts: dict[str, int] = {}
    stack = [root]
    while stack:
        digest = stack[-1]
        children = [entry.digest for entry in walk.trees[digest] if entry.is_directory]
        unknown = [child for child in children if child not in counts]
        if unknown:
            stack.extend(unknown)
            continue
        counts[digest] = sum(1 + counts[child] for child in children)
        stack.pop()
    return counts[root]

"""All directories below a tree, a few at a time, so that a tree of any size costs little memory.

What a directory says of the size of its children is checked when the walk comes to them, before
anything of theirs is handed out. So what is handed out never exceeds what the root claims, and a
small graph that unfolds into more than MAX_ENTRIES is refused at its root.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from executord.files.faults import CancelledWorkError, corrupt
from executord.files.model.closure import MAX_DEPTH, MAX_ENTRIES
from executord.files.model.trees import Tree, totals

GetTrees = Callable[[Sequence[str]], Mapping[str, Tree]]

_BATCH_DIRECTORIES = 64
_BATCH_ENTRIES = 8192


class Claim(NamedTuple):
    """What the parent says of a directory: bytes and entries below it, at any depth."""

    size: int
    entries: int


class Directory(NamedTuple):
    """`path` is relative to where the walk began, "" for that itself."""

    path: str
    digest: str
    tree: Tree


class _Pending(NamedTuple):
    path: str
    digest: str
    claim: Claim | None
    depth: int


def walk(
    root: str,
    get: GetTrees,
    cancelled: threading.Event,
    *,
    path: str = "",
    claim: Claim | None = None,
    level_by_level: bool = False,
) -> Iterator[Directory]:
    """Parents before their children, each occurrence. `level_by_level` asks `get` for many trees
    at once where they have to come from far; else few directories wait at any time.

    Raises FaultError, CancelledWorkError.
    """
    depth = path.count("/") + 1 if path else 0
    pending = deque([_Pending(path, root, claim, depth)])
    while pending:
        if cancelled.is_set():
            raise CancelledWorkError
        batch = _next_batch(pending, level_by_level=level_by_level)
        found = get(list({each.digest: None for each in batch}))
        for each in batch if level_by_level else reversed(batch):
            _note_children(each, found[each.digest], pending)
        for each in batch:
            yield Directory(each.path, each.digest, found[each.digest])


def _next_batch(pending: deque[_Pending], *, level_by_level: bool) -> list[_Pending]:
    batch: list[_Pending] = []
    entries = 0
    while pending and len(batch) < _BATCH_DIRECTORIES and entries < _BATCH_ENTRIES:
        each = pending.popleft() if level_by_level else pending.pop()
        batch.append(each)
        entries += each.claim.entries if each.claim is not None else _BATCH_ENTRIES
    return batch


def _note_children(directory: _Pending, tree: Tree, pending: deque[_Pending]) -> None:
    claim = Claim(*totals(tree))
    if directory.claim is not None and claim != directory.claim:
        raise corrupt(f"The tree {directory.digest} is not as large as its parent says.")
    if claim.entries > MAX_ENTRIES:
        raise corrupt(f"The tree {directory.digest} has more than {MAX_ENTRIES} entries.")
    children = [entry for entry in tree if entry.is_directory]
    if children and directory.depth >= MAX_DEPTH:
        raise corrupt(f"The tree {directory.digest} lies deeper than {MAX_DEPTH} directories.")
    prefix = f"{directory.path}/" if directory.path else ""
    for entry in children:
        pending.append(
            _Pending(
                f"{prefix}{entry.name}",
                entry.digest,
                Claim(entry.size, entry.count),
                directory.depth + 1,
            )
        )

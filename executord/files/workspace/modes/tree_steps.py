"""A tree walked from its root down, a directory at a time, without holding it all.

The entries of the whole tree are numbered: those of one directory in a row, then those below its
directories in their order. So a place in the numbering follows from the counts in the trees.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from executord.files.faults import corrupt
from executord.files.model.closure import MAX_DEPTH, MAX_ENTRIES
from executord.files.model.trees import Entry, Tree, totals

_TREES_AT_ONCE = 256

Get = Callable[[Iterable[str]], Mapping[str, Tree]]


@dataclass(frozen=True, slots=True)
class Enter:
    """A directory, before everything below it. `first` is the number of its first entry."""

    name: str
    entries: Tree
    first: int


class Leave:
    """Everything below the directory that was entered last has been told."""


LEAVE = Leave()


def starts_below(tree: Tree, first: int) -> Iterator[tuple[Entry, int]]:
    """The directories in a directory, each with the number of the first entry below it."""
    start = first + len(tree)
    for entry in tree:
        if entry.is_directory:
            yield entry, start
            start += entry.count


def steps(root: str, get: Get) -> Iterator[Enter | Leave]:
    """Every Enter has its Leave. Trees are asked for many at a time.

    What a directory says of the size of its children is checked against them, so that a small
    graph which unfolds into more than MAX_ENTRIES is refused at once. Raises FaultError.
    """
    top = get((root,))[root]
    if totals(top)[1] > MAX_ENTRIES:
        raise corrupt(f"The tree {root} has more than {MAX_ENTRIES} entries.")
    yield Enter("", top, 0)
    stack = [_below(top, 0, get)]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            yield LEAVE
            continue
        if len(stack) > MAX_DEPTH:
            raise corrupt(f"The tree {root} is deeper than {MAX_DEPTH} directories.")
        yield step
        stack.append(_below(step.entries, step.first, get))


def _below(tree: Tree, first: int, get: Get) -> Iterator[Enter]:
    found: Mapping[str, Tree] = {}
    directories = list(starts_below(tree, first))
    for number, (entry, start) in enumerate(directories):
        if number % _TREES_AT_ONCE == 0:
            part = directories[number : number + _TREES_AT_ONCE]
            found = get([each.digest for each, _ in part])
        below = found[entry.digest]
        if totals(below) != (entry.size, entry.count):
            raise corrupt(f"The tree {entry.digest} is not as large as its parent says.")
        yield Enter(entry.name, below, start)

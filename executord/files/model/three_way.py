"""Two sides of one base become one tree, if they changed different paths.

Only directories that differ are read. What one side alone changed is taken; what both changed to
the same is taken once; what both changed otherwise is a conflict, and then there is no merged tree.
A directory that one side deleted counts as one whose contents it deleted: what the other side put
into it stays, what the other side changed in it is a conflict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from executord.files.model import trees
from executord.files.model.trees import EMPTY_TREE, Entry, TreeSource

MAX_CONFLICTS = 20


@dataclass(slots=True)
class ThreeWay:
    """`tree` is "" where there are conflicts. `made` holds the trees that no side has.

    `conflicts` names the first paths of `conflict_count`, in order of the walk.
    """

    tree: str = ""
    made: dict[str, bytes] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    conflict_count: int = 0


@dataclass(slots=True)
class _Frame:
    """One directory that both sides changed; `kept` says that it stays where nothing is in it."""

    path: str
    name: str
    kept: bool
    out: dict[str, Entry]
    pending: list[tuple[str, Entry | None, Entry | None, Entry | None]]


def merge_trees(base: str, theirs: str, ours: str, source: TreeSource) -> ThreeWay:
    """Takes and gives tree digests. Raises the source's faults."""
    merge = _Merge(source)
    merge.run(base, theirs, ours)
    return merge.result


class _Merge:
    def __init__(self, source: TreeSource) -> None:
        self._source = source
        self.result = ThreeWay()

    def run(self, base: str, theirs: str, ours: str) -> None:
        if ours in (theirs, base):
            self.result.tree = theirs
            return
        if base == theirs:
            self.result.tree = ours
            return
        stack = [self._begin("", "", (base, theirs, ours), kept=True)]
        while stack:
            frame = stack[-1]
            if frame.pending:
                name, below, one, two = frame.pending.pop()
                stack.append(
                    self._begin(
                        f"{frame.path}{name}/",
                        name,
                        (_below(below), _below(one), _below(two)),
                        kept=one is not None and two is not None,
                    )
                )
                continue
            stack.pop()
            self._leave(frame, stack[-1] if stack else None)

    def _begin(self, path: str, name: str, digests: tuple[str, str, str], *, kept: bool) -> _Frame:
        base, theirs, ours = (self._entries(digest) for digest in digests)
        frame = _Frame(path, name, kept, {}, [])
        for each in sorted(base.keys() | theirs.keys() | ours.keys()):
            self._decide(frame, each, base.get(each), theirs.get(each), ours.get(each))
        return frame

    def _entries(self, digest: str) -> Mapping[str, Entry]:
        return {entry.name: entry for entry in self._source.tree(digest)}

    def _decide(
        self, frame: _Frame, name: str, base: Entry | None, theirs: Entry | None, ours: Entry | None
    ) -> None:
        if _same(theirs, ours) or _same(base, ours):
            taken = theirs
        elif _same(base, theirs):
            taken = ours
        elif _can_descend(base, theirs, ours):
            frame.pending.append((name, base, theirs, ours))
            return
        else:
            self._conflict(f"{frame.path}{name}")
            return
        if taken is not None:
            frame.out[name] = taken

    def _conflict(self, path: str) -> None:
        self.result.conflict_count += 1
        if len(self.result.conflicts) < MAX_CONFLICTS:
            self.result.conflicts.append(path)

    def _leave(self, frame: _Frame, above: _Frame | None) -> None:
        if self.result.conflict_count:
            self.result.made.clear()
            return
        if not frame.out and not frame.kept:
            return
        digest, data = trees.encode(frame.out.values())
        self.result.made[digest] = data
        if above is None:
            self.result.tree = digest
        else:
            above.out[frame.name] = trees.directory_entry(frame.name, digest, frame.out.values())


def _same(one: Entry | None, two: Entry | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.content == two.content


def _can_descend(base: Entry | None, theirs: Entry | None, ours: Entry | None) -> bool:
    """Both sides have a directory, or one of them deleted the directory that was there."""
    if theirs is not None and ours is not None:
        return theirs.is_directory and ours.is_directory
    left = theirs or ours
    return base is not None and base.is_directory and left is not None and left.is_directory


def _below(entry: Entry | None) -> str:
    return entry.digest if entry is not None and entry.is_directory else EMPTY_TREE

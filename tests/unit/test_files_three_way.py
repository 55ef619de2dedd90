"""Three-way merges of trees, held against a model: plain dictionaries of paths."""

from collections.abc import Mapping
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executord.files.model import digests, trees
from executord.files.model.three_way import MAX_CONFLICTS, ThreeWay, merge_trees
from executord.files.model.trees import EMPTY_TREE, Entry, Tree

Node: TypeAlias = "str | dict[str, Node]"
"""A file's content (one that begins with ! is executable, with > a link), or a directory."""


class Memory:
    """A source of trees; remembers which ones were read."""

    def __init__(self) -> None:
        self.made: dict[str, bytes] = {}
        self.read: set[str] = set()

    def tree(self, digest: str) -> Tree:
        if digest == EMPTY_TREE:
            return ()
        self.read.add(digest)
        return trees.decode(self.made[digest])

    def put(self, directory: Mapping[str, Node]) -> str:
        digest, data = trees.encode(self._entry(name, node) for name, node in directory.items())
        self.made[digest] = data
        return digest

    def _entry(self, name: str, node: Node) -> Entry:
        if isinstance(node, dict):
            digest = self.put(node)
            return trees.directory_entry(name, digest, trees.decode(self.made[digest]))
        if node.startswith(">"):
            return trees.link_entry(name, node)
        executable = node.startswith("!")
        content = node.lstrip("!")
        digest = digests.of_bytes(content.encode())
        return trees.file_entry(name, digest, len(content), executable=executable)

    def merge(self, base: Node, theirs: Node, ours: Node) -> ThreeWay:
        assert isinstance(base, dict)
        assert isinstance(theirs, dict)
        assert isinstance(ours, dict)
        one, two, three = self.put(base), self.put(theirs), self.put(ours)
        self.read.clear()
        result = merge_trees(one, two, three, self)
        self.made.update(result.made)
        return result

    def contents(self, digest: str, path: str = "") -> dict[str, tuple[str, str, str]]:
        """Leaves by path, and directories by path with a slash."""
        found = {}
        for entry in self.tree(digest):
            if entry.is_directory:
                found[f"{path}{entry.name}/"] = ("directory", "", "")
                found |= self.contents(entry.digest, f"{path}{entry.name}/")
            else:
                found[f"{path}{entry.name}"] = (
                    entry.kind.value,
                    entry.digest,
                    entry.target,
                )
        return found


def merged(base: Node, theirs: Node, ours: Node) -> dict[str, tuple[str, str, str]] | list[str]:
    memory = Memory()
    result = memory.merge(base, theirs, ours)
    return result.conflicts if result.conflict_count else memory.contents(result.tree)


def leaves(node: Node) -> dict[str, tuple[str, str, str]]:
    memory = Memory()
    assert isinstance(node, dict)
    return memory.contents(memory.put(node))


# -- examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "theirs", "ours", "expected"),
    [
        ({"a": "1", "b": "1"}, {"a": "2", "b": "1"}, {"a": "1", "b": "2"}, {"a": "2", "b": "2"}),
        ({"a": "1"}, {"a": "1", "x": "x"}, {"a": "1", "y": "y"}, {"a": "1", "x": "x", "y": "y"}),
        ({"a": "1", "b": "1"}, {"a": "1"}, {"b": "1"}, {}),
        ({}, {"a": "same"}, {"a": "same"}, {"a": "same"}),
        ({"a": "1"}, {"a": "2"}, {"a": "2"}, {"a": "2"}),
        ({"a": "1"}, {}, {}, {}),
        ({}, {"d": {"x": "x"}}, {"d": {"y": "y"}}, {"d": {"x": "x", "y": "y"}}),
        (
            {"d": {"x": "1", "y": "1"}},
            {"d": {"x": "2", "y": "1"}},
            {"d": {"x": "1"}},
            {"d": {"x": "2"}},
        ),
        ({"d": {"x": "1"}}, {}, {"d": {"x": "1", "new": "n"}}, {"d": {"new": "n"}}),
        ({"d": {"x": "1", "y": "1"}}, {}, {"d": {"y": "1"}}, {}),
        ({"d": {"x": "1", "y": "1"}}, {"d": {"x": "1"}}, {"d": {"y": "1"}}, {"d": {}}),
        ({"d": {}}, {}, {"d": {"x": "1"}}, {"d": {"x": "1"}}),
        ({"d": {"x": "1"}}, {"d": "now a file"}, {"d": {"x": "1"}}, {"d": "now a file"}),
    ],
)
def test_changes_of_different_paths_are_all_there(
    base: Node, theirs: Node, ours: Node, expected: Node
) -> None:
    assert merged(base, theirs, ours) == leaves(expected)
    assert merged(base, ours, theirs) == leaves(expected)


@pytest.mark.parametrize(
    ("base", "theirs", "ours", "paths"),
    [
        ({"a": "1"}, {"a": "2"}, {"a": "3"}, ["a"]),
        ({"a": "1"}, {}, {"a": "3"}, ["a"]),
        ({}, {"a": "2"}, {"a": "3"}, ["a"]),
        ({"a": "1"}, {"a": "!1"}, {"a": "2"}, ["a"]),
        ({"a": "1"}, {"a": ">elsewhere"}, {"a": "2"}, ["a"]),
        ({"a": "1"}, {"a": {"x": "x"}}, {"a": "2"}, ["a"]),
        ({"a": "1"}, {"a": {"x": "x"}}, {}, ["a"]),
        ({}, {"a": {"x": "x"}}, {"a": "2"}, ["a"]),
        ({"d": {"x": "1"}}, {"d": "file"}, {"d": {"x": "2"}}, ["d"]),
        ({"d": {"x": "1"}}, {"d": "file"}, {}, ["d"]),
        ({"d": {"x": "1", "y": "1"}}, {}, {"d": {"x": "2", "y": "1"}}, ["d/x"]),
        ({"d": {"e": {"x": "1"}}}, {"d": {"e": {"x": "2"}}}, {"d": {"e": {"x": "3"}}}, ["d/e/x"]),
    ],
)
def test_the_same_path_changed_on_both_sides_is_a_conflict_that_names_it(
    base: Node, theirs: Node, ours: Node, paths: list[str]
) -> None:
    assert merged(base, theirs, ours) == paths
    assert merged(base, ours, theirs) == paths


def test_only_directories_that_differ_on_both_sides_are_read() -> None:
    same: dict[str, Node] = {f"f{n}": str(n) for n in range(50)}
    base: dict[str, Node] = {
        "same": same,
        "one": {"a": "1"},
        "two": {"a": "2"},
        "both": {"a": "3", "b": "4"},
    }
    theirs: Node = {**base, "one": {"a": "x"}, "both": {"a": "y", "b": "4"}}
    ours: Node = {**base, "two": {"a": "x"}, "both": {"a": "3", "b": "z"}}
    memory = Memory()
    result = memory.merge(base, theirs, ours)
    assert not result.conflict_count
    assert len(memory.read) == 6  # three roots, and `both` three times
    assert len(result.made) == 2


def test_only_the_first_conflicts_are_named_and_all_are_counted() -> None:
    base: Node = {f"{n:03}": "1" for n in range(100)}
    theirs: Node = {f"{n:03}": "2" for n in range(100)}
    ours: Node = {f"{n:03}": "3" for n in range(100)}
    result = Memory().merge(base, theirs, ours)
    assert (result.tree, result.made, result.conflict_count) == ("", {}, 100)
    assert result.conflicts == [f"{n:03}" for n in range(MAX_CONFLICTS)]


def test_a_thousand_directories_deep_is_merged() -> None:
    memory = Memory()

    def deep(leaf: dict[str, Node]) -> str:
        digest = memory.put(leaf)
        for _ in range(1000):
            entry = trees.directory_entry("d", digest, memory.tree(digest))
            digest, data = trees.encode([entry])
            memory.made[digest] = data
        return digest

    result = merge_trees(
        deep({"a": "1", "b": "1"}), deep({"a": "2", "b": "1"}), deep({"a": "1", "b": "2"}), memory
    )
    assert result.tree == deep({"a": "2", "b": "2"})
    assert len(result.made) == 1001


# -- against the model -----------------------------------------------------------------------------

CONTENTS = st.sampled_from(["1", "2", "3", "!1", ">to"])
NAMES = st.sampled_from(["a", "b", "c"])
DIRECTORIES = st.recursive(
    st.dictionaries(NAMES, CONTENTS, max_size=3),
    lambda below: st.dictionaries(NAMES, st.one_of(CONTENTS, below), max_size=3),
    max_leaves=8,
)


def _changes(
    base: dict[str, tuple[str, str, str]], side: dict[str, tuple[str, str, str]]
) -> dict[str, tuple[str, str, str] | None]:
    """Files and links that one side changed, added or deleted (None)."""
    return {
        path: side.get(path)
        for path in base.keys() | side.keys()
        if not path.endswith("/") and base.get(path) != side.get(path)
    }


@settings(max_examples=600, deadline=None)
@given(DIRECTORIES, DIRECTORIES, DIRECTORIES)
def test_a_merge_loses_no_change_of_either_side_and_overwrites_nothing(
    base: Node, theirs: Node, ours: Node
) -> None:
    memory = Memory()
    result = memory.merge(base, theirs, ours)
    other_way = memory.merge(base, ours, theirs)
    before, one, two = leaves(base), leaves(theirs), leaves(ours)
    by_them, by_us = _changes(before, one), _changes(before, two)
    clash = {path for path in by_them.keys() & by_us.keys() if by_them[path] != by_us[path]}
    if clash:
        assert result.conflict_count
    if result.conflict_count:
        assert other_way.conflict_count == result.conflict_count
        assert not result.tree
        _check_conflicts_are_real(result.conflicts, before, one, two)
        return
    assert other_way.tree == result.tree
    found = memory.contents(result.tree)
    files = {path: entry for path, entry in found.items() if not path.endswith("/")}
    expected = {path: entry for path, entry in before.items() if not path.endswith("/")}
    for path, entry in {**by_them, **by_us}.items():
        if entry is None:
            expected.pop(path, None)
        else:
            expected[path] = entry
    assert files == expected
    for path in found.keys() - files.keys():
        needed = any(file.startswith(path) for file in found if file != path)
        assert needed or path in one or path in two
    kept = {path for path in one.keys() & two.keys() if path.endswith("/")}
    assert kept <= found.keys()


def _check_conflicts_are_real(
    paths: list[str],
    base: dict[str, tuple[str, str, str]],
    one: dict[str, tuple[str, str, str]],
    two: dict[str, tuple[str, str, str]],
) -> None:
    """At a path in conflict, or below it, both sides differ from the base and from each other."""
    for path in paths:
        there = [
            {p: e for p, e in side.items() if p in (path, f"{path}/") or p.startswith(f"{path}/")}
            for side in (base, one, two)
        ]
        assert there[0] != there[1]
        assert there[0] != there[2]
        assert there[1] != there[2]


@settings(max_examples=200, deadline=None)
@given(DIRECTORIES, DIRECTORIES)
def test_a_side_that_changed_nothing_gives_way(base: Node, ours: Node) -> None:
    memory = Memory()
    tree = memory.put(ours)  # type: ignore[arg-type]
    assert memory.merge(base, base, ours).tree == tree
    assert memory.merge(base, ours, base).tree == tree
    assert memory.merge(base, ours, ours).tree == tree

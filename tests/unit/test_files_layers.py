"""Layers: a tree laid over one that is near shows exactly what a whole snapshot of it would."""

import os
import stat
import subprocess
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from executord.core.reasons import FaultError, Reason
from executord.files.cache.blobs import BlobKey
from executord.files.cache.grounds import Ground
from executord.files.model import delta, digests, trees
from tests.fakes.grounds import MANY, Node, Spec, entries_of, expected, mounted, seen, with_changes


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "s")


# -- by property ---------------------------------------------------------------------------------

_names = st.sampled_from(["a", "b", "c", "dir", "ü", os.fsdecode(b"\xe9"), '},{"kind":"'])
_leaves = st.one_of(
    st.sampled_from(["", "one", "two", "three"]),
    st.sampled_from([("one",), ("two",)]),
    st.sampled_from([["a"], ["../x"], ["/etc"]]),
)
_specs = st.dictionaries(
    _names,
    st.recursive(_leaves, lambda inner: st.dictionaries(_names, inner, max_size=4), max_leaves=12),
    max_size=6,
)


@pytest.mark.timeout(300)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_specs, min_size=2, max_size=4))
def test_a_chain_of_layers_shows_exactly_what_the_whole_snapshot_shows(
    chain: list[dict[str, Any]],
) -> None:
    with TemporaryDirectory(prefix="executord-layers-") as text:
        node = Node(Path(text) / "s")
        wanted = [node.put(spec) for spec in chain]
        assume(len(set(wanted)) == len(wanted))
        node.build(wanted[0], whole=True)
        for base, tree in pairwise(wanted):
            if trees.totals(node.trees.get(tree) or ())[1]:
                made = node.build(tree, likely=[base]).about
            else:
                made = node.build(tree, whole=True).about
            assert made.directories == 1 + _count_directories(chain[wanted.index(tree)])
            assert made.entries_in_all == trees.totals(node.trees.get(tree) or ())[1]
            assert made.bytes == trees.totals(node.trees.get(tree) or ())[0]
            with mounted(node.snapshots.lowers(tree)) as merged:
                laid_over = seen(merged)
            assert laid_over == expected(chain[wanted.index(tree)])


def _count_directories(spec: Spec) -> int:
    return sum(
        1 + _count_directories(value) for value in spec.values() if isinstance(value, Mapping)
    )


@settings(max_examples=300, deadline=None)
@given(_specs, _specs)
def test_the_entries_that_two_written_trees_share_are_left_out_and_no_others(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    raw = [trees.encode(entries_of(spec, {}, {}))[1] for spec in (before, after)]
    olds, news = (trees.decode(each) for each in raw)
    was, now = delta.entries_apart(*raw)
    assert {e for e in olds if e not in was} == {e for e in news if e not in now}
    assert set(was) <= set(olds)
    assert set(now) <= set(news)
    assert {*was} >= {e for e in olds if e not in news}
    assert {*now} >= {e for e in news if e not in olds}


_edits = st.dictionaries(
    st.integers(0, 80), st.sampled_from(["changed", "gone", "x" * 300]), min_size=1, max_size=3
)


@settings(max_examples=300, deadline=None)
@given(_edits, st.integers(1, 90))
def test_a_few_changes_in_a_large_directory_are_found_exactly(
    edits: dict[int, str], name_bytes: int
) -> None:
    before: dict[str, Any] = {f"{n:03}{'n' * name_bytes}": f"{n}" for n in range(1, 80)}
    after = dict(before)
    for number, edit in edits.items():
        name = f"{number:03}{'n' * name_bytes}"
        if edit == "gone":
            after.pop(name, None)
        else:
            after[name if edit == "changed" else f"{name}{edit[:100]}"] = edit
    raw = [trees.encode(entries_of(spec, {}, {}))[1] for spec in (before, after)]
    olds, news = (trees.decode(each) for each in raw)
    was, now = delta.entries_apart(*raw)
    assert [e for e in olds if e not in was] == [e for e in news if e not in now]
    assert {*was} >= {*olds} - {*news}
    assert {*now} >= {*news} - {*olds}
    if len(edits) == 1:
        assert len(was) + len(now) <= 4


# -- what a layer holds --------------------------------------------------------------------------


def test_a_layer_holds_what_differs_and_nothing_else(node: Node) -> None:
    base = node.put(MANY)
    node.build(base, whole=True)
    tree = node.put(with_changes(MANY, {"d3/f7": "new", "d5": None, "d7/f1": None}))
    about = node.layer_over(base, tree)
    root = node.snapshots.root(Ground("layer", tree))
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert found == {"d3", "d3/f7", "d5", "d7", "d7/f1"}
    assert (about.files, about.directories, about.entries, about.depth) == (379, 20, 5, 1)
    assert [key.digest for key, _ in node.snapshots.blobs_of(Ground("layer", tree))] == [
        digests.of_bytes(b"new")
    ]
    assert set(node.snapshots.trees_of(Ground("layer", tree))) < set(node.source.remote_trees)
    assert len(node.snapshots.trees_of(Ground("layer", tree))) == 3


def test_a_directory_of_which_little_is_left_is_made_anew_and_hides_the_old_one(
    node: Node,
) -> None:
    base = node.put(MANY)
    node.build(base, whole=True)
    tree = node.put({**MANY, "d3": {"only": "x"}})
    about = node.layer_over(base, tree)
    assert about.entries == 2
    with mounted(node.snapshots.lowers(tree)) as merged:
        assert [path.name for path in (merged / "d3").iterdir()] == ["only"]


def test_files_of_equal_content_anywhere_in_a_chain_can_be_copied_over_each_other(
    node: Node, tmp_path: Path
) -> None:
    first = node.put({**MANY, "a": "same"})
    node.build(first, whole=True)
    second = node.put({**MANY, "a": "same", "b": "same", "c": "other"})
    node.layer_over(first, second)
    third = node.put({**MANY, "a": "same", "b": "same", "c": "other", "d": "other", "e": "same"})
    node.layer_over(second, third)
    with mounted(node.snapshots.lowers(third), writable=tmp_path / "run") as merged:
        for one, other in (("a", "b"), ("b", "a"), ("c", "d"), ("e", "a"), ("d", "c")):
            subprocess.run(["cp", str(merged / one), str(merged / other)], check=True)
            subprocess.run(["mv", str(merged / one), str(merged / other)], check=True)
            subprocess.run(["cp", str(merged / other), str(merged / one)], check=True)


def test_a_blob_that_another_chain_alone_links_to_is_linked_and_not_copied(node: Node) -> None:
    base = node.put(MANY)
    node.build(base, whole=True)
    elsewhere = node.put({"x": "new"})
    node.build(elsewhere, whole=True)
    tree = node.put({**MANY, "x": "new"})
    node.layer_over(base, tree)
    blob = Path(node.blobs.path(BlobKey(digests.of_bytes(b"new"), executable=False)))
    root = node.snapshots.root(Ground("layer", tree))
    assert (root / "x").stat().st_ino == blob.stat().st_ino


def test_only_the_trees_and_blobs_that_differ_are_fetched(node: Node) -> None:
    base = node.put(MANY)
    node.build(base, whole=True)
    tree = node.put(with_changes(MANY, {"d3/f7": "new", "d3/f8": "newer"}), here=False)
    made = node.build(tree)
    assert (made.way, made.files_fetched, made.bytes_fetched) == ("layer", 2, 8)
    assert {key.digest for key in node.source.asked} == {
        digests.of_bytes(b"new"),
        digests.of_bytes(b"newer"),
    }
    assert len(node.source.asked_trees) == 2
    assert node.room == [(2 * 4096, 4)]  # two files in two directories of the layer


def test_the_executable_bit_alone_is_in_the_layer(node: Node) -> None:
    base = node.put(MANY)
    node.build(base, whole=True)
    tree = node.put(with_changes(MANY, {"d3/f7": ("3-7",)}))
    node.layer_over(base, tree)
    with mounted(node.snapshots.lowers(tree)) as merged:
        assert stat.S_IMODE((merged / "d3/f7").stat().st_mode) == 0o755
        assert stat.S_IMODE((merged / "d3/f8").stat().st_mode) == 0o644


def test_three_hundred_directories_deep_can_be_laid_over(node: Node) -> None:
    def deep(content: str) -> dict[str, Any]:
        spec: dict[str, Any] = {"bottom": content}
        for _ in range(300):
            spec = {"n" * 20: spec}
        return {**MANY, **spec}

    base, tree = node.put(deep("before")), node.put(deep("after"))
    node.build(base, whole=True)
    node.layer_over(base, tree)
    path = node.snapshots.root(Ground("layer", tree))
    fd = os.open(path, os.O_RDONLY)
    for _ in range(300):
        below = os.open("n" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with os.fdopen(os.open("bottom", os.O_RDONLY, dir_fd=fd)) as file:
        assert file.read() == "after"
    os.close(fd)


# -- what is wrong -------------------------------------------------------------------------------


def test_a_near_tree_that_lies_about_its_size_is_refused(node: Node) -> None:
    base = node.put(MANY)
    node.build(base, whole=True)
    entries = list(node.trees.get(node.put(with_changes(MANY, {"d3/f7": "new"}))) or ())
    lie = [
        msgspec.structs.replace(entry, count=entry.count + 1) if entry.name == "d3" else entry
        for entry in entries
    ]
    digest, data = trees.encode(lie)
    node.trees.put({digest: data})
    with pytest.raises(FaultError, match="not as large") as caught:
        node.build(digest, likely=[base])
    assert caught.value.fault.reason is Reason.FILES_CORRUPT
    assert list(node.layout.tmp.iterdir()) == []


def test_what_unfolds_into_millions_near_something_small_is_refused(node: Node) -> None:
    node.build(node.put(MANY), whole=True)
    entries = [trees.link_entry("l", "t")]
    for _ in range(30):
        digest, data = trees.encode(entries)
        node.trees.put({digest: data})
        entries = [trees.directory_entry(name, digest, entries) for name in "ab"]
    digest, data = trees.encode([*(node.trees.get(node.put(MANY)) or ()), *entries])
    node.trees.put({digest: data})
    with pytest.raises(FaultError, match="more than"):
        node.build(digest)
    assert list(node.layout.tmp.iterdir()) == []

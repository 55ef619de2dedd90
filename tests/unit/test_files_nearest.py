"""Which of the grounds that are here a tree is laid upon, if upon any."""

from pathlib import Path

from executord.files.cache.nearest import Prices
from tests.fakes.grounds import MANY, Node, with_changes


def ordinary(tmp_path: Path) -> Node:
    return Node(tmp_path / "s", Prices())


def test_the_nearest_of_all_that_is_here_is_taken(tmp_path: Path) -> None:
    node = ordinary(tmp_path)
    far = node.put(with_changes(MANY, {f"d{n}/f{n}": "far" for n in range(20)}))
    near = node.put(with_changes(MANY, {"d1/f1": "near"}))
    node.build(far, whole=True)
    node.build(near, whole=True)
    node.build(node.put({"something": "else"}), whole=True)
    made = node.build(node.put(MANY), likely=[far])
    assert (made.about.base, made.about.depth) == (near, 1)
    assert near.removeprefix("sha256:")[:12] in made.why


def test_a_small_tree_is_made_whole(tmp_path: Path) -> None:
    node = ordinary(tmp_path)
    node.build(node.put({"a": "a", "b": "b"}))
    assert node.build(node.put({"a": "a", "b": "c"})).way == "farm"


def test_a_tree_that_shares_too_little_is_made_whole(tmp_path: Path) -> None:
    node = ordinary(tmp_path)
    node.build(node.put(MANY))
    other = {name: {**below, "more": name} for name, below in MANY.items()}
    half = {name: {f: f"x{f}{name}" for f in below} for name, below in MANY.items()}
    assert node.build(node.put(other)).way == "layer"
    made = node.build(node.put(half))
    assert (made.way, made.about.depth) == ("farm", 0)
    assert "nothing near" in made.why


def test_a_chain_is_not_longer_than_its_paths_fit_into_a_mounts_options(tmp_path: Path) -> None:
    long = tmp_path / ("p" * 200) / ("q" * 200)
    node = Node(long / "s")
    most = node.snapshots.most_layers
    assert 1 <= most < 8
    tree = node.put(MANY)
    node.build(tree, whole=True)
    for number in range(most + 1):
        after = node.put({**MANY, "x": str(number)})
        made = node.build(after, likely=[tree])
        tree = after
    lowers = node.snapshots.lowers(tree)
    assert made.about.depth <= most
    assert len(":".join(map(str, lowers))) + 2 * (len(str(long)) + 160) < 3400


def test_a_depth_that_is_dear_makes_a_layer_on_the_snapshot_again(tmp_path: Path) -> None:
    node = ordinary(tmp_path)
    base = node.put(MANY)
    node.build(base)
    depths = []
    for number in range(6):
        tree = node.put(with_changes(MANY, {"d1/f1": f"change {number}"}))
        depths.append(node.build(tree).about.depth)
    assert depths == [1] * 6


def test_of_many_snapshots_not_all_are_looked_through(tmp_path: Path) -> None:
    node = ordinary(tmp_path)
    for number in range(100):
        node.build(node.put({**MANY, "d0": {"n": str(number)}, "d1": {"m": str(number)}}))
    read: list[str] = []
    raw = node.trees.raw

    def counted(digest: str) -> bytes | None:
        read.append(digest)
        return raw(digest)

    node.trees.raw = counted  # type: ignore[method-assign]
    assert node.build(node.put({**MANY, "d0": {"n": "new"}, "d1": {"m": "7"}})).way == "layer"
    assert len(read) < 250


def test_a_base_whose_trees_are_lost_is_not_taken(tmp_path: Path) -> None:
    node = ordinary(tmp_path)
    base = node.put(MANY)
    node.build(base)
    for path in node.layout.trees.rglob("*"):
        if path.is_file():
            path.unlink()
    again = Node(tmp_path / "s", Prices())
    tree = again.put(with_changes(MANY, {"d3/f7": "new"}))
    for path in again.layout.trees.rglob(base.removeprefix("sha256:")):
        path.unlink()
    fresh = Node(tmp_path / "s", Prices())
    fresh.source.remote_trees = again.source.remote_trees
    assert fresh.build(tree).way == "farm"

"""Chains of layers: who holds them, what a power cut leaves, and how they become snapshots."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from executord.core.reasons import Reason
from executord.files.cache.blobs import BlobKey
from executord.files.cache.flatten import Flattener
from executord.files.cache.grounds import About, Ground
from executord.files.cache.records import BlobRecords, RecordsLookup, read_records
from executord.files.faults import CancelledWorkError, fault
from executord.files.model import digests
from tests.fakes.grounds import (
    MANY,
    Chain,
    Node,
    new_chain,
)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "s")


@pytest.fixture
def chain(node: Node) -> Chain:
    return new_chain(node)


# -- who holds what ------------------------------------------------------------------------------


def test_what_a_layer_stands_on_cannot_be_thrown_away_before_it(chain: Chain) -> None:
    snapshots = chain.node.snapshots
    assert not snapshots.throw_away(chain.base)
    assert not snapshots.throw_away(chain.middle)
    for tree in (chain.top, chain.middle, chain.base):
        assert snapshots.throw_away(tree)
    assert chain.grounds() == set()


def test_who_holds_a_layer_holds_all_it_stands_on(chain: Chain) -> None:
    snapshots = chain.node.snapshots
    snapshots.pin(chain.top, "r-1")
    assert snapshots.pinned() == {
        chain.top: ("r-1",),
        chain.middle: ("r-1",),
        chain.base: ("r-1",),
    }
    for tree in (chain.top, chain.middle, chain.base):
        assert not snapshots.throw_away(tree)
    snapshots.unpin("r-1")
    assert snapshots.throw_away(chain.top)


def test_a_run_on_a_chain_keeps_it_when_a_snapshot_of_the_same_tree_comes(chain: Chain) -> None:
    node, snapshots = chain.node, chain.node.snapshots
    snapshots.pin(chain.top, "r-1")
    lowers = snapshots.lowers(chain.top, "r-1")
    assert len(lowers) == 3
    node.build(chain.top, whole=True)
    assert snapshots.lowers(chain.top) == (snapshots.lower(chain.top),)
    assert not snapshots.throw_away(Ground("layer", chain.top))
    assert snapshots.throw_away(Ground("snapshot", chain.top))
    node.build(chain.top, whole=True)
    snapshots.unpin("r-1")
    assert snapshots.throw_away(Ground("layer", chain.top))


def test_after_a_restart_a_lease_holds_both_since_it_does_not_say_which(chain: Chain) -> None:
    chain.node.build(chain.top, whole=True)
    again = Node(chain.node.layout.root).snapshots
    again.pin(chain.top, "r-1")
    for ground in again.grounds():
        assert not again.throw_away(ground)


def test_a_run_on_the_snapshot_does_not_keep_the_layer_that_it_has_replaced(chain: Chain) -> None:
    snapshots = chain.node.snapshots
    chain.node.build(chain.top, whole=True)
    snapshots.pin(chain.top, "r-1")
    snapshots.lowers(chain.top, "r-1")
    assert snapshots.throw_away(Ground("layer", chain.top))
    assert not snapshots.throw_away(Ground("snapshot", chain.top))


def test_who_holds_a_tree_for_two_purposes_holds_both_kinds_of_it(chain: Chain) -> None:
    """As a run whose files are mounted a second time as a dataset."""
    snapshots = chain.node.snapshots
    snapshots.pin(chain.top, "r-1")
    assert len(snapshots.lowers(chain.top, "r-1")) == 3
    chain.node.build(chain.top, whole=True)
    snapshots.pin(chain.top, "r-1")
    assert len(snapshots.lowers(chain.top, "r-1")) == 1
    assert not snapshots.throw_away(Ground("layer", chain.top))
    assert not snapshots.throw_away(Ground("snapshot", chain.top))


def test_what_breaks_under_a_run_is_not_thrown_away_but_kept_aside(chain: Chain) -> None:
    aside: list[Ground] = []

    def keep_aside(home: Path, ground: Ground) -> bool:
        aside.append(ground)
        home.rename(chain.node.layout.quarantine / f"{len(aside)}")
        return True

    snapshots = chain.node.snapshots
    snapshots.keep_aside = keep_aside
    snapshots.pin(chain.top, "r-1")
    mounted_on = [os.open(lower, os.O_RDONLY) for lower in snapshots.lowers(chain.top, "r-1")]
    (chain.node.home("snapshot", chain.base) / "about").write_bytes(b"")
    assert snapshots.find(chain.top) is None
    assert set(aside) == {
        Ground("layer", chain.top),
        Ground("layer", chain.middle),
        Ground("snapshot", chain.base),
    }
    assert list(chain.node.layout.trash.iterdir()) == []
    for fd, name in zip(mounted_on, ("x", "x", "d1"), strict=True):
        os.stat(name, dir_fd=fd)
        os.close(fd)


def test_a_layer_stands_on_exactly_what_it_was_made_for(chain: Chain) -> None:
    """A snapshot of the middle tree has other inodes than the chain that the top was made for."""
    node = chain.node
    node.build(chain.middle, whole=True)
    lowers = node.snapshots.lowers(chain.top)
    assert [path.parents[1].name for path in lowers] == ["layers-v1", "layers-v1", "snapshots-v1"]


@pytest.mark.parametrize("spoilt", [b"", b"{}", b"not JSON", None])
def test_a_layer_whose_ground_is_gone_or_spoilt_is_not_used(
    chain: Chain, spoilt: bytes | None
) -> None:
    about = chain.node.home("snapshot", chain.base) / "about"
    if spoilt is None:
        about.unlink()
    else:
        about.write_bytes(spoilt)
    assert chain.node.snapshots.find(chain.top) is None
    made = chain.node.build(chain.top)
    assert made.way == "farm"
    assert chain.node.snapshots.find(chain.top) == made.about


def test_a_ground_that_was_made_again_is_not_the_one_a_layer_was_made_for(chain: Chain) -> None:
    """As if somebody had moved it away and another were built in its place."""
    home = chain.node.home("snapshot", chain.base)
    home.rename(chain.node.layout.root / "away")
    chain.node.snapshots.find(chain.base)
    chain.node.build(chain.base, whole=True)
    assert chain.node.snapshots.find(chain.top) is None
    assert Node(chain.node.layout.root).snapshots.find(chain.top) is None


def test_records_that_do_not_fit_into_memory_are_whole_and_grouped(tmp_path: Path) -> None:
    records = BlobRecords(tmp_path)
    wanted = {
        BlobKey(digests.of_bytes(b"%d" % n), executable=n % 3 == 0): n for n in range(250_000)
    }
    for key, size in wanted.items():
        records.add(key.digest, key.executable, size)
    records.write(tmp_path / "blobs")
    records.close()
    assert [path.name for path in tmp_path.iterdir()] == ["blobs"]
    found = list(read_records(tmp_path / "blobs"))
    assert len(found) == len(wanted)
    assert dict(found) == wanted
    first_bytes = [key.digest[7:9] for key, _ in found]
    assert first_bytes == sorted(first_bytes)
    lookup = RecordsLookup(tmp_path / "blobs")
    key = next(iter(wanted))
    assert key in lookup
    assert key._replace(executable=not key.executable) not in lookup
    lookup.close()


# -- a power cut ---------------------------------------------------------------------------------


def power_cut(node: Node) -> Node:
    """The same directories after the machine has started again."""
    for folder in (node.layout.snapshots, node.layout.layers):
        for home in folder.iterdir():
            about = msgspec.json.decode((home / "about").read_bytes(), type=About)
            other = msgspec.structs.replace(about, boot="another")
            (home / "about").write_bytes(msgspec.json.encode(other))
    return Node(node.layout.root)


def test_what_was_not_marked_durable_is_gone_after_a_power_cut(chain: Chain) -> None:
    assert power_cut(chain.node).snapshots.grounds() == {}
    assert list(chain.node.layout.layers.iterdir()) == []


def test_a_layer_goes_with_the_ground_that_a_power_cut_took(chain: Chain) -> None:
    chain.node.snapshots.mark_durable([Ground("layer", chain.top), Ground("layer", chain.middle)])
    assert power_cut(chain.node).snapshots.grounds() == {}


def test_what_was_marked_durable_survives_a_power_cut(chain: Chain) -> None:
    snapshots = chain.node.snapshots
    assert set(snapshots.not_durable()) == set(snapshots.grounds())
    snapshots.mark_durable(snapshots.not_durable())
    assert snapshots.not_durable() == []
    assert len(power_cut(chain.node).snapshots.lowers(chain.top)) == 3


def test_a_restart_of_the_daemon_alone_takes_nothing(chain: Chain) -> None:
    assert len(Node(chain.node.layout.root).snapshots.lowers(chain.top)) == 3


# -- when nobody waits ---------------------------------------------------------------------------


def no_check(_bytes: int, _inodes: int) -> None:
    """There is room."""


def flattener(node: Node, check: Callable[[int, int], None] = no_check) -> Flattener:
    return Flattener(node.tools, check, flatten_depth=2, idle_seconds=0.01)


async def settled(flattener: Flattener) -> None:
    """Until it has nothing more to do."""
    flattener.look()
    assert flattener._task is not None
    await flattener._task


async def test_a_long_chain_becomes_a_snapshot_when_nobody_waits(chain: Chain) -> None:
    flat = flattener(chain.node)
    await settled(flat)
    assert chain.grounds() == {
        ("snapshot", chain.base),
        ("layer", chain.middle),
        ("snapshot", chain.top),
    }
    assert chain.node.snapshots.not_durable() in ([], [Ground("snapshot", chain.top)])
    await settled(flat)
    assert chain.node.snapshots.not_durable() == []
    await flat.close()


async def test_a_layer_that_a_run_stands_on_goes_when_that_has_ended(chain: Chain) -> None:
    chain.node.snapshots.pin(chain.top, "r-1")
    assert len(chain.node.snapshots.lowers(chain.top, "r-1")) == 3
    flat = flattener(chain.node)
    await settled(flat)
    assert {("layer", chain.top), ("snapshot", chain.top)} < chain.grounds()
    chain.node.snapshots.unpin("r-1")
    await settled(flat)
    assert ("layer", chain.top) not in chain.grounds()
    await flat.close()


async def test_flattening_waits_for_builds_and_is_given_up_when_one_begins(chain: Chain) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def one_begins(_: int, _inodes: int) -> None:
        flat.begin()
        loop.call_soon_threadsafe(begun.set)

    flat = flattener(chain.node, check=one_begins)
    flat.look()
    await begun.wait()
    await asyncio.sleep(0.1)
    assert ("snapshot", chain.top) not in chain.grounds()
    assert list(chain.node.layout.tmp.iterdir()) == []
    await flat.close()
    assert ("snapshot", chain.top) not in chain.grounds()


async def test_what_is_not_on_the_node_is_not_fetched_to_flatten(chain: Chain) -> None:
    gone = BlobKey(digests.of_bytes(b"2"), executable=False)
    chain.node.blobs.remove([gone])
    flat = flattener(chain.node)
    await settled(flat)
    await settled(flat)
    assert chain.node.source.asked == []
    assert ("snapshot", chain.top) not in chain.grounds()
    assert list(chain.node.layout.tmp.iterdir()) == []
    await flat.close()


async def test_where_there_is_no_room_nothing_is_flattened(chain: Chain) -> None:
    def full(size: int, _inodes: int) -> None:
        raise fault(Reason.DISK_FULL, f"{size} bytes do not fit.")

    flat = flattener(chain.node, full)
    await settled(flat)
    assert ("snapshot", chain.top) not in chain.grounds()
    await flat.close()


def test_a_build_that_is_given_up_leaves_nothing(chain: Chain) -> None:
    build = chain.node.begin(chain.node.put({**MANY, "x": "3"}))
    build.cancelled.set()
    with pytest.raises(CancelledWorkError):
        build.run(whole=True)
    assert list(chain.node.layout.tmp.iterdir()) == []
    assert chain.node.snapshots.find(build.tree) is None

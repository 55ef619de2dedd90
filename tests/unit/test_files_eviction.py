"""Which entries go, as a pure choice; and that the cache does what was chosen, and no more."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.core.eviction import (
    Evictable,
    Part,
    Space,
    by_last_use,
    choose_victims,
    discounted,
    likelihood,
    own_space,
)
from executord.core.reasons import FaultError, Reason
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from tests.fakes.files import contents, ignore_progress, new_store, opened, push, write_files

MEBIBYTE = 1 << 20
NOW = 1_000_000.0
HOUR = 3600.0


def entry(
    key: str,
    *,
    idle: float = HOUR,
    own: int = 0,
    inodes: int = 0,
    seconds: float = 1.0,
    parts: tuple[int, ...] = (),
    uses: float = 1.0,
    base: str = "",
) -> Evictable:
    return Evictable(
        key=key,
        last_used=NOW - idle,
        own_bytes=own,
        own_inodes=inodes,
        own_seconds=seconds,
        parts=parts,
        uses=uses,
        base=base,
    )


def chosen(
    entries: list[Evictable],
    need: int | Space,
    parts: tuple[Part, ...] = (),
    pinned: tuple[str, ...] = (),
) -> list[tuple[str, int]]:
    space = need if isinstance(need, Space) else Space(need)
    choice = choose_victims(entries, parts=parts, pinned=set(pinned), need=space, now=NOW)
    return [(victim.key, victim.freed.bytes) for victim in choice.victims]


# -- the choice ----------------------------------------------------------------------------------


def test_of_equals_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    entries = [entry("b", idle=20, own=10), entry("a", idle=30, own=10), entry("c", own=10, idle=9)]
    assert chosen(entries, 15) == [("a", 10), ("b", 10)]


def test_nothing_goes_when_nothing_is_needed() -> None:
    assert chosen([entry("a", own=10)], 0) == []


def test_what_is_pinned_stays_even_if_that_is_not_enough() -> None:
    assert chosen([entry("a", own=10), entry("b", own=10)], 100, pinned=("a",)) == [("b", 10)]


def test_what_is_dear_to_get_again_stays_longer() -> None:
    entries = [entry("dear", own=10, seconds=100), entry("cheap", own=10, idle=HOUR / 2)]
    assert chosen(entries, 5) == [("cheap", 10)]


def test_what_is_used_often_stays_longer() -> None:
    entries = [entry("often", own=10, uses=20), entry("once", own=10, idle=HOUR / 2)]
    assert chosen(entries, 5) == [("once", 10)]


def test_what_frees_more_for_the_same_cost_goes_first() -> None:
    assert chosen([entry("small", own=10), entry("large", own=1000)], 10) == [("large", 1000)]


def test_a_large_one_that_was_taken_last_spares_the_small_ones_before_it() -> None:
    entries = [entry("small", own=10, idle=100 * HOUR), entry("large", own=1000, idle=HOUR)]
    assert chosen(entries, 1000) == [("large", 1000)]


def test_an_old_revision_goes_before_the_new_one_that_holds_most_of_it() -> None:
    parts = (Part(1000, 1, 1.0), Part(10, 1, 0.1), Part(10, 1, 0.1))
    entries = [
        entry("old", idle=HOUR, own=10, parts=(0, 1), uses=5),
        entry("other", idle=3 * HOUR, own=10, parts=(2,), uses=5, seconds=1.0),
        entry("new", idle=1, own=10, parts=(0, 2)),
    ]
    assert chosen(entries, 15, parts) == [("old", 20)]


def test_inodes_alone_may_be_what_is_needed() -> None:
    entries = [entry("bytes", own=10_000, inodes=1), entry("inodes", own=10, inodes=500)]
    choice = choose_victims(entries, parts=(), pinned=set(), need=Space(0, 100), now=NOW)
    assert [victim.key for victim in choice.victims] == ["inodes"]
    assert choice.freed == Space(10, 500)


def test_a_shared_part_is_freed_with_its_last_holder() -> None:
    parts = (Part(100), Part(50))
    entries = [
        entry("a", idle=30, own=1, parts=(0, 1)),
        entry("b", idle=20, own=1, parts=(0,)),
        entry("c", idle=10, own=1, parts=(1,), seconds=100),
    ]
    assert chosen(entries, 102, parts) == [("a", 1), ("b", 101)]


def test_a_part_that_a_pinned_entry_holds_is_never_freed() -> None:
    entries = [entry("a", own=1, parts=(0,)), entry("b", own=1, parts=(0,))]
    choice = choose_victims(entries, parts=(Part(100),), pinned={"b"}, need=Space(1000), now=NOW)
    assert (choice.freed_bytes, choice.freed_parts) == (1, frozenset())


def test_a_base_goes_only_together_with_the_layers_on_it_and_after_them() -> None:
    entries = [
        entry("base", own=1000, idle=100 * HOUR),
        entry("layer", own=1, base="base"),
        entry("top", own=1, base="layer"),
        entry("other", own=10, seconds=1000, idle=1),
    ]
    assert chosen(entries, 500) == [("top", 1), ("layer", 1), ("base", 1000)]


def test_a_layer_goes_without_its_base() -> None:
    entries = [
        entry("base", own=10, seconds=100),
        entry("layer", own=10, base="base", idle=9 * HOUR),
    ]
    assert chosen(entries, 5) == [("layer", 10)]


def test_a_base_below_a_pinned_layer_stays() -> None:
    entries = [entry("base", own=1000), entry("layer", own=1, base="base"), entry("x", own=1)]
    assert chosen(entries, 500, pinned=("layer",)) == [("x", 1)]


def test_own_space_is_what_would_be_freed_if_only_it_went() -> None:
    entries = [entry("a", own=1, inodes=1, parts=(0, 1)), entry("b", own=2, parts=(0,))]
    found = own_space(entries, (Part(100, 3), Part(50, 2)))
    assert found == {"a": Space(51, 3), "b": Space(2, 0)}


def test_uses_count_half_after_their_half_life() -> None:
    assert discounted(8, 7 * 24 * HOUR) == pytest.approx(4)
    assert likelihood(entry("a", idle=HOUR), NOW) > likelihood(entry("a", idle=2 * HOUR), NOW)


def test_the_least_recently_used_alone_can_be_the_rule() -> None:
    entries = [entry("old", own=10, seconds=1000, idle=9), entry("new", own=10, idle=8)]
    choice = choose_victims(
        entries, parts=(), pinned=set(), need=Space(5), now=NOW, rank=by_last_use
    )
    assert [victim.key for victim in choice.victims] == ["old"]


@st.composite
def caches(draw: st.DrawFn) -> list[tuple[Evictable, bool]]:
    """Entries with whether they are pinned; a base comes before what stands on it."""
    found: list[tuple[Evictable, bool]] = []
    for number in range(draw(st.integers(0, 12))):
        bases = ["", *(each.key for each, _ in found)]
        one = entry(
            str(number),
            idle=draw(st.floats(0, 1e6)),
            own=draw(st.integers(0, 50)),
            inodes=draw(st.integers(0, 5)),
            seconds=draw(st.floats(0, 100)),
            uses=draw(st.floats(0.01, 50)),
            parts=tuple(sorted(draw(st.sets(st.integers(0, 5))))),
            base=draw(st.sampled_from(bases)),
        )
        found.append((one, draw(st.booleans())))
    return found


@given(caches(), st.integers(0, 600), st.integers(0, 30))
def test_what_a_choice_promises_is_what_goes(
    drawn: list[tuple[Evictable, bool]], need_bytes: int, need_inodes: int
) -> None:
    sizes = (1, 2, 4, 8, 16, 32)
    parts = [Part(size, 1, size / 8) for size in sizes]
    entries = [each for each, _ in drawn]
    pinned = {each.key for each, is_pinned in drawn if is_pinned}
    need = Space(need_bytes, need_inodes)
    choice = choose_victims(entries, parts=parts, pinned=pinned, need=need, now=NOW)
    order = [victim.key for victim in choice.victims]
    gone = set(order)
    kept = [each for each in entries if each.key not in gone]
    held_before = {part for each in entries for part in each.parts}
    held_after = {part for each in kept for part in each.parts}
    freed_parts = held_before - held_after
    really = Space(
        sum(each.own_bytes for each in entries if each.key in gone)
        + sum(sizes[part] for part in freed_parts),
        sum(each.own_inodes for each in entries if each.key in gone) + len(freed_parts),
    )
    assert choice.freed == really
    assert choice.freed_parts == freed_parts
    assert not gone & pinned
    assert not any(each.base in gone for each in kept)
    for each in entries:
        if each.base in gone:
            assert order.index(each.key) < order.index(each.base)
    if not really.covers(need):
        below_pins = {each.base for each in entries if each.key in pinned} | pinned
        while len(below_pins) < len(
            below_pins := below_pins | {each.base for each in entries if each.key in below_pins}
        ):
            pass
        assert gone == {each.key for each in entries} - below_pins


@given(caches(), st.integers(1, 200))
def test_no_victim_could_have_stayed(drawn: list[tuple[Evictable, bool]], need: int) -> None:
    parts = [Part(size) for size in (1, 2, 4, 8, 16, 32)]
    entries = {each.key: each for each, _ in drawn}
    choice = choose_victims(entries.values(), parts=parts, pinned=set(), need=Space(need), now=NOW)
    gone = {victim.key for victim in choice.victims}
    if choice.freed.bytes < need:
        return
    for key in gone:
        if entries[key].base in gone:
            continue
        rest = gone - {key}
        held = {part for other in entries.values() if other.key not in rest for part in other.parts}
        freed = sum(entries[other].own_bytes for other in rest)
        freed += sum(part.bytes for at, part in enumerate(parts) if at not in held) - sum(
            part.bytes
            for at, part in enumerate(parts)
            if not any(at in each.parts for each in entries.values())
        )
        assert freed < need, key


# -- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


def project(tmp_path: Path, store: Store, name: str, *, shared: bytes = b"") -> str:
    """A revision with 1 MiB of its own, and 1 MiB of `shared` if given."""
    files: dict[str, bytes | str] = {"own": os.urandom(MEBIBYTE)}
    if shared:
        files["shared"] = shared
    return push(store, write_files(tmp_path / name, files), name).revision


async def use(files: ProjectFiles, revision: str, run_id: str, *, keep: bool = False) -> str:
    tree = (await files.prepare(run_id, revision, ignore_progress)).workspace.tree
    if not keep:
        await files.discard(run_id, keep_workspace=False)
    return tree


def disk_use(state: Path) -> int:
    inodes = {}
    for folder in ("blobs-v1", "snapshots-v1", "layers-v1"):
        for path in (state / folder).glob("*/**"):
            for each in (path, *path.iterdir()):
                facts = each.lstat()
                inodes[facts.st_ino] = facts.st_blocks * 512
    return sum(inodes.values())


async def test_prune_frees_what_no_run_needs_and_says_beforehand_what(
    tmp_path: Path, store: Store
) -> None:
    shared = os.urandom(MEBIBYTE)
    revisions = [project(tmp_path, store, name, shared=shared) for name in ("p1", "p2", "p3")]
    async with opened(tmp_path / "s", store) as files:
        await use(files, revisions[0], "r-1")
        live = await use(files, revisions[1], "r-2", keep=True)
        await use(files, revisions[2], "r-3")
        before = disk_use(tmp_path / "s")
        planned = await files.prune(dry_run=True)
        assert disk_use(tmp_path / "s") == before
        done = await files.prune(dry_run=False)
        assert planned.dry_run
        assert [v.digest for v in planned.victims] == [v.digest for v in done.victims]
        freed = before - disk_use(tmp_path / "s")
        assert freed == pytest.approx(done.freed_bytes, rel=0.01)
        assert freed == pytest.approx(2 * MEBIBYTE, rel=0.02)
        (entry_left,) = [entry for entry in await files.entries() if entry.kind == "snapshot"]
        assert (entry_left.digest, entry_left.pinned_by) == (live, ("r-2",))
        stats = await files.stats()
        assert (stats.snapshots, stats.blobs) == (1, 2)
        assert stats.blob_bytes == 2 * MEBIBYTE
        root = tmp_path / "s/snapshots-v1" / live.removeprefix("sha256:") / "root"
        assert contents(root) == contents(tmp_path / "p2")
        assert (await files.prepare("r-4", revisions[0], ignore_progress)).cost.files_fetched == 1


async def test_above_the_high_watermark_some_go_until_the_low_one(
    tmp_path: Path, store: Store
) -> None:
    revisions = [project(tmp_path, store, f"p{n}") for n in range(6)]
    limits = {"max_size_bytes": 5 * MEBIBYTE, "low_watermark": 0.5, "high_watermark": 0.9}
    async with opened(tmp_path / "s", store, **limits) as files:
        trees = [await use(files, revision, f"r-{n}") for n, revision in enumerate(revisions)]
        for _ in range(300):
            left = {entry.digest for entry in await files.entries() if entry.kind == "snapshot"}
            if len(left) <= 4:
                break
            await asyncio.sleep(0.02)
        assert left < set(trees)
        assert (await files.stats()).blob_bytes <= 5 * MEBIBYTE


async def test_room_is_made_before_files_are_fetched(tmp_path: Path, store: Store) -> None:
    first = project(tmp_path, store, "p1")
    second = project(tmp_path, store, "p2")
    async with opened(tmp_path / "s", store, max_size_bytes=int(1.5 * MEBIBYTE)) as files:
        old = await use(files, first, "r-1")
        new = await use(files, second, "r-2", keep=True)
        left = {entry.digest for entry in await files.entries()}
    assert new in left
    assert old not in left


async def test_leases_pin_also_after_a_restart(tmp_path: Path, store: Store) -> None:
    revision = project(tmp_path, store, "p1")
    async with opened(tmp_path / "s", store) as files:
        tree = await use(files, revision, "r-1", keep=True)
    async with opened(tmp_path / "s", store) as files:
        assert (await files.prune(dry_run=False)).victims == ()
        await files.discard("r-1", keep_workspace=False)
        assert [v.digest for v in (await files.prune(dry_run=False)).victims] == [tree]
        assert (await files.stats()).blobs == 0


async def test_blobs_of_a_build_under_way_are_not_pruned(tmp_path: Path, store: Store) -> None:
    many = {f"f{n}": f"{n}" * 100 for n in range(3000)}
    revision = push(store, write_files(tmp_path / "p", many), "p").revision
    async with opened(tmp_path / "s", store) as files:
        building = asyncio.create_task(files.prepare("r-1", revision, ignore_progress))
        pruned = 0
        while not building.done():
            await files.prune(dry_run=False)
            pruned += 1
        tree = (await building).workspace.tree.removeprefix("sha256:")
    assert pruned > 0
    assert contents(tmp_path / "s/snapshots-v1" / tree / "root") == contents(tmp_path / "p")


async def test_what_cannot_be_made_to_fit_is_refused_with_the_numbers(
    tmp_path: Path, store: Store
) -> None:
    revision = project(tmp_path, store, "p1")
    facts = os.statvfs(tmp_path)
    free = facts.f_bavail * facts.f_frsize
    async with opened(tmp_path / "s", store, min_free_bytes=free + (1 << 40)) as files:
        with pytest.raises(FaultError) as caught:
            await files.prepare("r-1", revision, ignore_progress)
    assert caught.value.fault.reason is Reason.DISK_FULL
    assert caught.value.fault.evidence["needed_bytes"] == MEBIBYTE

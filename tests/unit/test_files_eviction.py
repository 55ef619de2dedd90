"""Which entries go, as a pure choice; and that the cache does what was chosen, and no more."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.core.eviction import Evictable, choose_victims, own_bytes
from executord.core.reasons import FaultError, Reason
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from tests.fakes.files import contents, ignore_progress, new_store, opened, push, write_files

MEBIBYTE = 1 << 20


def entry(key: str, last_used: float, own: int = 0, parts: tuple[int, ...] = ()) -> Evictable:
    return Evictable(key=key, last_used=last_used, own_bytes=own, parts=parts)


def chosen(
    entries: list[Evictable], need: int, parts: tuple[int, ...] = (), pinned: tuple[str, ...] = ()
) -> list[tuple[str, int]]:
    choice = choose_victims(entries, part_bytes=parts, pinned=set(pinned), need_bytes=need)
    return [(victim.key, victim.freed_bytes) for victim in choice.victims]


# -- the choice ----------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    entries = [entry("b", 2, 10), entry("a", 1, 10), entry("c", 3, 10)]
    assert chosen(entries, 15) == [("a", 10), ("b", 10)]


def test_nothing_goes_when_nothing_is_needed() -> None:
    assert chosen([entry("a", 1, 10)], 0) == []


def test_what_is_pinned_stays_even_if_that_is_not_enough() -> None:
    entries = [entry("a", 1, 10), entry("b", 2, 10)]
    assert chosen(entries, 100, pinned=("a",)) == [("b", 10)]


def test_a_shared_part_is_freed_with_its_last_holder() -> None:
    entries = [entry("a", 1, 1, (0, 1)), entry("b", 2, 1, (0,)), entry("c", 3, 1, (1,))]
    assert chosen(entries, 102, parts=(100, 50)) == [("a", 1), ("b", 101)]


def test_a_part_that_a_pinned_entry_holds_is_never_freed() -> None:
    entries = [entry("a", 1, 1, (0,)), entry("b", 2, 1, (0,))]
    choice = choose_victims(entries, part_bytes=(100,), pinned={"b"}, need_bytes=1000)
    assert (choice.freed_bytes, choice.freed_parts) == (1, frozenset())


def test_own_bytes_are_what_would_be_freed_if_only_it_went() -> None:
    entries = [entry("a", 1, 1, (0, 1)), entry("b", 2, 2, (0,))]
    assert own_bytes(entries, (100, 50)) == {"a": 51, "b": 2}


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 50), st.sets(st.integers(0, 5)), st.booleans()),
        max_size=12,
    ),
    st.integers(0, 600),
)
def test_what_a_choice_promises_is_what_goes(
    drawn: list[tuple[float, int, set[int], bool]], need: int
) -> None:
    parts = (1, 2, 4, 8, 16, 32)
    entries = [
        entry(str(n), used, own, tuple(sorted(held)))
        for n, (used, own, held, _) in enumerate(drawn)
    ]
    pinned = {str(n) for n, (_, _, _, pin) in enumerate(drawn) if pin}
    choice = choose_victims(entries, part_bytes=parts, pinned=pinned, need_bytes=need)
    gone = {victim.key for victim in choice.victims}
    kept = [each for each in entries if each.key not in gone]
    held_before = {part for each in entries for part in each.parts}
    held_after = {part for each in kept for part in each.parts}
    really = sum(each.own_bytes for each in entries if each.key in gone)
    really += sum(parts[part] for part in held_before - held_after)
    assert choice.freed_bytes == really
    assert choice.freed_parts == held_before - held_after
    assert not gone & pinned
    assert really >= need or gone == {each.key for each in entries} - pinned


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
    for folder in ("blobs-v1", "snapshots-v1"):
        for path in (state / folder).rglob("*"):
            if path.is_file():
                facts = path.stat()
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


async def test_above_the_high_watermark_the_oldest_go_until_the_low_one(
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
        assert trees[-1] in left
        assert trees[0] not in left
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

"""What the cache says it takes is what the disk says; and what is thrown away really goes."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from executord.core.eviction import NOTHING, Space
from executord.core.run import Mount
from executord.files.cache.blobs import BlobKey
from executord.files.cache.layout import Layout
from executord.files.cache.measure import measure
from executord.files.cache.trash import STEP_BYTES, STEP_FILES, Trash
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.files.system.directories import remove_tree
from executord.ports import CacheReport
from tests.fakes.files import ignore_progress, new_store, opened, push, write_files

MEBIBYTE = 1 << 20

Contents = dict[str, bytes | str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 256 MiB, with nothing else on it."""
    if os.geteuid() != 0:
        pytest.skip("mounts a filesystem")
    image, mounted = tmp_path / "disk.img", tmp_path / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(
        ["mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-N", "40000", str(image)], check=True
    )
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def free_on(disk: Path) -> Space:
    os.sync()
    facts = os.statvfs(disk)
    return Space(facts.f_bfree * facts.f_frsize, facts.f_ffree)


def uncounted(state: Path) -> int:
    """Bytes of small things that are kept apart from the cache's limits."""
    names = ("trees-v1", "revisions-v1", "packs-v1", "trace-v1")
    folders = [state / name for name in names if (state / name).exists()]
    return sum(measure(folder, with_links=True).bytes for folder in folders)


async def report_of(files: ProjectFiles) -> CacheReport:
    report = (await files.stats()).report
    assert report is not None
    return report


async def trash_is_empty(state: Path) -> None:
    for _ in range(2000):
        if not any((state / "trash").iterdir()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the trash is never emptied")


async def use(files: ProjectFiles, revision: str, run_id: str, *, keep: bool = False) -> None:
    await files.prepare(run_id, revision, ignore_progress)
    if not keep:
        await files.discard(run_id, keep_workspace=False)


def revisions_that_share(tmp_path: Path, store: Store) -> list[str]:
    """Three of one project, the later ones near the first; and a project that shares half."""
    common: Contents = {f"common/{n % 40}/{n}": os.urandom(3000 + n) for n in range(2000)}
    extra: Contents = {f"own/{n}": os.urandom(20_000) for n in range(300)}
    twice: Contents = {"copy/a": b"the same" * 1000, "copy/b": b"the same" * 1000, "copy/c": ""}
    root = write_files(tmp_path / "p", common | extra | twice)
    (root / "link").symlink_to("own/1")
    found = [push(store, root, "alice/p").revision]
    for edit in range(2):
        write_files(root, {f"own/{n}": os.urandom(20_000) for n in range(edit * 5, edit * 5 + 5)})
        (root / f"own/{200 + edit}").unlink()
        found.append(push(store, root, "alice/p").revision)
    other = write_files(
        tmp_path / "q", common | {f"more/{n}": os.urandom(9000) for n in range(500)}
    )
    return [*found, push(store, other, "alice/q").revision]


async def test_a_dry_prune_tells_what_the_disk_then_gains(
    tmp_path: Path, store: Store, disk: Path
) -> None:
    state = disk / "s"
    revisions = revisions_that_share(tmp_path, store)
    async with opened(state, store) as files:
        for number, revision in enumerate(revisions):
            await use(files, revision, f"r-{number}", keep=number == 1)
        loose = files._parts.blobs.batch()
        sparse = [bytes(MEBIBYTE)] * 8 + [os.urandom(MEBIBYTE)]
        loose.ingest(iter(sparse), executable=False)
        loose.ingest([os.urandom(70_000)], executable=True)
        loose.commit()
        kinds = {entry.kind for entry in await files.entries()}
        assert kinds == {"snapshot", "layer", "blob"}
        (state / "quarantine/x").write_bytes(os.urandom(MEBIBYTE))
        await trash_is_empty(state)
        before = free_on(disk)
        planned = await files.prune(dry_run=True)
        assert free_on(disk) == before
        done = await files.prune(dry_run=False)
        await trash_is_empty(state)
        after = free_on(disk)
        assert [v.digest for v in planned.victims] == [v.digest for v in done.victims]
        assert planned.freed_bytes == done.freed_bytes
        assert after.bytes - before.bytes == pytest.approx(planned.freed_bytes, rel=0.01)
        assert after.inodes - before.inodes == pytest.approx(planned.freed_inodes, rel=0.01)
        assert planned.freed_bytes > 5 * MEBIBYTE
        assert all("to get again" in victim.why for victim in planned.victims)
        assert all(entry.pinned_by for entry in await files.entries())
        await files.discard("r-1", keep_workspace=False)
        last = await files.prune(dry_run=False)
        await trash_is_empty(state)
        assert free_on(disk).bytes - after.bytes == pytest.approx(last.freed_bytes, rel=0.02)
        assert (await files.stats()).blobs == 0


async def test_what_is_in_the_trash_already_is_told_apart(
    tmp_path: Path, store: Store, disk: Path
) -> None:
    revision = revisions_that_share(tmp_path, store)[0]
    async with opened(disk / "s", store) as files:
        await use(files, revision, "r-1")
        with files._parts.sweeper.trash.way.taken():
            done = await files.prune(dry_run=False)
            again = await files.prune(dry_run=True)
        assert again.victims == ()
        assert 0 < again.coming_bytes <= done.freed_bytes


async def test_used_space_is_what_the_disk_says(tmp_path: Path, store: Store, disk: Path) -> None:
    state = disk / "s"
    async with opened(state, store) as files:
        empty, uncounted_before = free_on(disk), uncounted(state)
        for number, revision in enumerate(revisions_that_share(tmp_path, store)):
            await use(files, revision, f"r-{number}", keep=number == 0)
        write_files(state / "runs/r-0/upper", {f"out/{n}": os.urandom(50_000) for n in range(20)})
        await files.prune(dry_run=True)  # has everything measured
        await trash_is_empty(state)
        report = await report_of(files)
        taken = empty.bytes - free_on(disk).bytes - (uncounted(state) - uncounted_before)
        assert report.used_bytes == pytest.approx(taken, rel=0.02)
        assert report.kinds["live_workspaces"].bytes > 20 * 50_000
        assert report.saved_bytes > 20 * MEBIBYTE
        assert [lease.run for lease in report.leases] == ["r-0"]
        assert report.pins.keys() == {lease.tree for lease in report.leases}


async def test_a_start_counts_nothing_and_still_knows(tmp_path: Path, store: Store) -> None:
    revisions = revisions_that_share(tmp_path, store)
    async with opened(tmp_path / "s", store) as files:
        for number, revision in enumerate(revisions[:2]):
            await use(files, revision, f"r-{number}")
        before = await report_of(files)
    async with opened(tmp_path / "s", store) as files:
        after = await report_of(files)
        assert after.kinds["blobs"] == before.kinds["blobs"]
        assert after.kinds["snapshots"].entries == before.kinds["snapshots"].entries
        assert (after.in_all.hit_runs, after.in_all.missed_runs) == (0, 2)
        assert after.since_start.missed_runs == 0
        assert after.fetched.bytes > 0


async def test_a_wrong_account_is_mended_by_the_full_count(tmp_path: Path, store: Store) -> None:
    revision = revisions_that_share(tmp_path, store)[0]
    async with opened(tmp_path / "s", store) as files:
        await use(files, revision, "r-1")
        accounting, blobs = files._parts.sweeper.accounting, files._parts.blobs
        stop = threading.Event()
        accounting.refresh({}, stop, hurry=True)
        accounting.count(stop, hurry=True)
        true = blobs.counted()
        blobs.added(7, 7 * MEBIBYTE)
        assert accounting.count(stop, hurry=True) == 7 * MEBIBYTE
        assert blobs.counted() == true
        assert accounting.count(stop, hurry=True) == 0
        report = await report_of(files)
        assert (report.counted.corrections, report.counted.corrected_bytes) == (1, 7 * MEBIBYTE)


async def test_blobs_of_an_unknown_cache_are_counted_soon_after_the_start(
    tmp_path: Path, store: Store
) -> None:
    revision = revisions_that_share(tmp_path, store)[0]
    async with opened(tmp_path / "s", store) as files:
        await use(files, revision, "r-1")
        before = await files.stats()
    (tmp_path / "s/cache-state.json").write_text("{broken")
    async with opened(tmp_path / "s", store) as files:
        for _ in range(500):
            after = await files.stats()
            if after.blobs:
                break
            await asyncio.sleep(0.02)
    assert (after.blobs, after.blob_bytes) == (before.blobs, before.blob_bytes)


async def test_kept_workspaces_are_counted_and_never_evicted(tmp_path: Path, store: Store) -> None:
    revision = push(store, write_files(tmp_path / "p", {"a": "1"}), "alice/p").revision
    async with opened(tmp_path / "s", store) as files:
        await files.prepare("r-1", revision, ignore_progress)
        write_files(tmp_path / "s/runs/r-1/upper", {"result": os.urandom(MEBIBYTE)})
        await files.discard("r-1", keep_workspace=True)
        await files.prune(dry_run=False)
        report = await report_of(files)
        (kept,) = report.kept
        assert kept.run == "r-1"
        assert kept.bytes >= MEBIBYTE
        assert report.kinds["kept_workspaces"].bytes == kept.bytes
        assert report.used_bytes >= MEBIBYTE
        assert (tmp_path / "s/runs/r-1/upper/result").exists()


async def test_too_few_inodes_evict_and_then_refuse_with_the_numbers(
    tmp_path: Path, store: Store
) -> None:
    revisions = [
        push(
            store, write_files(tmp_path / p, {f"{p}/{n}": f"{p}{n}" for n in range(200)}), p
        ).revision
        for p in ("p1", "p2")
    ]
    async with opened(tmp_path / "s", store, max_inodes=300) as files:
        await use(files, revisions[0], "r-1")
        await use(files, revisions[1], "r-2", keep=True)
        for _ in range(500):
            left = [entry for entry in await files.entries() if entry.kind != "blob"]
            if len(left) == 1:
                break
            await asyncio.sleep(0.02)
        (only,) = left
        assert only.pinned_by == ("r-2",)
        report = await report_of(files)
        assert report.used_inodes <= 300
        assert sum(each.inodes for each in report.evictions) >= 200
        assert {each.why for each in report.recent_evictions} != {""}


@pytest.mark.parametrize("mode", ["overlay", "copy"])
async def test_inodes_are_made_room_for_before_anything_is_fetched(
    tmp_path: Path, store: Store, mode: str
) -> None:
    revisions = [
        push(store, write_files(tmp_path / p, {f"{p}/{n}": f"{p}{n}" for n in range(40)}), p)
        for p in ("p1", "p2")
    ]
    async with opened(tmp_path / "s", store, mode=mode, max_inodes=100) as files:
        made = files._parts.sweeper
        before = made._short_of
        wanted: list[int] = []

        def noted(incoming: Space, *, own_limits: bool) -> Space:
            if incoming.inodes:  # the caretaker asks too, for nothing
                wanted.append(incoming.inodes)
            return before(incoming, own_limits=own_limits)

        made._short_of = noted  # type: ignore[method-assign]
        for number, pushed in enumerate(revisions):
            wanted.clear()
            await use(files, pushed.revision, f"r-{number}")
            # a snapshot's blobs and two directories; a copy's files too, with what is beside them
            assert wanted[0] == (42 if mode == "overlay" else 43)


async def test_nothing_is_promised_of_blobs_that_a_live_run_links_to(
    tmp_path: Path, store: Store, disk: Path
) -> None:
    """Where runs get links: their blobs' bytes stay taken, whoever else lets go of them."""
    state = disk / "s"
    both = {f"both/{n}": os.urandom(9000 + n) for n in range(20)} | {"big": os.urandom(MEBIBYTE)}
    project, data = (
        push(store, write_files(tmp_path / name, both | {name: os.urandom(300_000)}), name).revision
        for name in ("p", "q")
    )
    mounts = (Mount(source="", target="/data", read_only=True, revision=data),)
    async with opened(state, store, mode="hardlink", user=(1000, 1000)) as files:
        await files.prepare("r-1", project, ignore_progress)
        await files.prepare("r-2", data, ignore_progress, mounts)
        await files.discard("r-2", keep_workspace=False)
        await trash_is_empty(state)
        before = free_on(disk)
        planned = await files.prune(dry_run=True)
        done = await files.prune(dry_run=False)
        await trash_is_empty(state)
        gained = free_on(disk).bytes - before.bytes
        assert planned.freed_bytes == done.freed_bytes
        assert gained == pytest.approx(planned.freed_bytes, abs=20_000)
        assert 300_000 <= gained < MEBIBYTE
        await files.discard("r-1", keep_workspace=False)
        await trash_is_empty(state)
        assert free_on(disk).bytes - before.bytes > MEBIBYTE


def beside(state: Path) -> tuple[Path, list[Path]]:
    """Half of a large file, and indexes of packs, the oldest first."""
    partial = write_files(state / "partial-v1", {"a" * 64: os.urandom(MEBIBYTE)}) / ("a" * 64)
    folder = state / "packs-v1" / "of-one-store"
    indexes = write_files(folder, {f"{n:064x}": os.urandom(9000) for n in range(4)})
    ordered = [indexes / f"{n:064x}" for n in (2, 0, 3, 1)]
    for age, path in enumerate(ordered):
        os.utime(path, (1000 + age, 1000 + age))
    return partial, ordered


async def test_half_fetched_files_and_indexes_are_counted(tmp_path: Path, store: Store) -> None:
    async with opened(tmp_path / "s", store) as files:
        before = await report_of(files)
        beside(tmp_path / "s")
        await files.prune(dry_run=True)
        after = await report_of(files)
        partial, indexes = after.kinds["partial_blobs"], after.kinds["pack_indexes"]
        assert (partial.entries, partial.bytes) == (1, MEBIBYTE)
        assert (indexes.inodes, indexes.bytes) == (5, 4 * 12_288 + 4096)  # with their folder
        assert after.used_bytes - before.used_bytes == partial.bytes + indexes.bytes


async def test_they_go_when_the_disk_is_short_the_oldest_first(
    tmp_path: Path, store: Store
) -> None:
    async with opened(tmp_path / "s", store) as files:
        parts = files._parts
        partial, indexes = beside(tmp_path / "s")
        key = BlobKey("sha256:" + "a" * 64, executable=False)
        with parts.blobs.pinned([key]):
            parts.sweeper.give_up_beside(lambda: not indexes[1].exists())
        assert partial.exists()  # somebody goes on with it
        assert [path.exists() for path in indexes] == [False, False, True, True]
        parts.sweeper.give_up_beside(lambda: True)
        assert partial.exists()
        parts.sweeper.give_up_beside(lambda: not partial.exists())
        assert not partial.exists()
        assert [path.exists() for path in indexes] == [False, False, True, True]


async def test_what_nobody_goes_on_fetching_goes_after_some_days(
    tmp_path: Path, store: Store
) -> None:
    async with opened(tmp_path / "s", store) as files:
        partial, _ = beside(tmp_path / "s")
        files._parts.blobs.forget_partials()
        assert partial.exists()
        os.utime(partial, (1000, 1000))
        files._parts.blobs.forget_partials()
        assert not partial.exists()


async def test_a_run_that_would_find_no_room_gets_theirs(
    tmp_path: Path, store: Store, disk: Path
) -> None:
    revision = push(store, write_files(tmp_path / "p", {"big": os.urandom(MEBIBYTE)}), "p").revision
    async with opened(disk / "s", store) as files:
        facts = os.statvfs(disk)
        with (disk / "s/partial-v1" / ("b" * 64)).open("wb") as half:
            left = facts.f_bavail * facts.f_frsize - MEBIBYTE // 2
            os.posix_fallocate(half.fileno(), 0, left)
        prepared = await files.prepare("r-1", revision, ignore_progress)
        assert prepared.cost.files_fetched == 1


async def test_the_trace_tells_each_tree_once_and_every_use(tmp_path: Path, store: Store) -> None:
    revisions = revisions_that_share(tmp_path, store)
    async with opened(tmp_path / "s", store) as files:
        for number, revision in enumerate([revisions[0], revisions[1], revisions[0]]):
            await use(files, revision, f"r-{number}")
        uses = list(await files.trace())
    assert [bool(use.parts) for use in uses] == [True, True, False]
    first, second = ({part.id for part in use.parts} for use in uses[:2])
    assert len(first & second) > 0.9 * len(first)
    told = sum(max(part.blocks, uses[0].one_in) for part in uses[0].parts) * 4096
    files_bytes = sum(p.stat().st_blocks * 512 for p in (tmp_path / "p").rglob("*") if p.is_file())
    assert told == pytest.approx(files_bytes, rel=0.2)


# -- the trash -----------------------------------------------------------------------------------


def test_a_large_file_that_somebody_still_reads_is_not_cut_short(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    large = layout.trash / "large"
    content = os.urandom(MEBIBYTE) * (STEP_BYTES // MEBIBYTE * 2)
    large.write_bytes(content)
    with large.open("rb") as reader:
        Trash(layout).empty(threading.Event())
        assert not large.exists()
        assert reader.read() == content


def test_a_file_with_another_link_is_not_cut_short(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    kept = tmp_path / "kept"
    kept.write_bytes(os.urandom(2 * STEP_BYTES))
    size = kept.stat().st_size
    (layout.trash / "link").hardlink_to(kept)
    Trash(layout).empty(threading.Event())
    assert kept.stat().st_size == size
    assert kept.stat().st_nlink == 1


def test_while_a_run_is_prepared_hardly_anything_is_deleted(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    write_files(layout.trash / "x", {str(n): "" for n in range(STEP_FILES * 4)})
    trash, stop = Trash(layout), threading.Event()
    with trash.way.taken():
        worker = threading.Thread(target=trash.empty, args=(stop,))
        worker.start()
        stop.wait(0.3)
        left = len(list((layout.trash / "x").iterdir()))
    worker.join(timeout=30)
    assert left >= STEP_FILES * 2
    assert list(layout.trash.iterdir()) == []


def test_who_waits_for_room_takes_over_and_leaves_what_is_not_needed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    write_files(layout.trash, {str(n): os.urandom(5000) for n in range(STEP_FILES * 10)})
    trash = Trash(layout)
    trash.expect(Space(STEP_FILES * 10 * 8192, STEP_FILES * 10))
    enough = STEP_FILES * 5
    trash.empty_now(lambda: len(list(layout.trash.iterdir())) <= enough)
    assert len(list(layout.trash.iterdir())) == enough
    assert trash.coming == Space(enough * 8192, enough)
    trash.empty(threading.Event())
    assert trash.coming == NOTHING


def test_a_daemon_that_leaves_does_not_wait_for_the_trash(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    write_files(layout.trash / "x", {str(n): "" for n in range(STEP_FILES * 10)})
    stop = threading.Event()
    stop.set()
    Trash(layout).empty(stop)
    assert len(list((layout.trash / "x").iterdir())) >= STEP_FILES * 8


# -- measuring -----------------------------------------------------------------------------------


def test_links_are_counted_once_and_only_where_all_of_them_are_below(tmp_path: Path) -> None:
    root = write_files(tmp_path / "d", {"a": os.urandom(8192), "deep/b": os.urandom(4096)})
    (root / "again").hardlink_to(root / "a")
    (root / "outside").hardlink_to(write_files(tmp_path / "o", {"x": os.urandom(4096)}) / "x")
    directories = sum(path.stat().st_blocks * 512 for path in (root, root / "deep"))
    assert measure(root, with_links=True) == Space(directories + 8192 + 4096, 4)
    assert measure(root, with_links=False) == Space(directories + 4096, 3)


def test_any_depth_is_measured(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert measure(tmp_path / "d", with_links=True).inodes == 3000
    remove_tree(tmp_path / "d")  # too deep for whoever removes this folder

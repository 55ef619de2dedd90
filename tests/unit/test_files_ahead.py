"""Files made ready before anybody needs them: out of everybody's way, and joined by runs."""

import asyncio
import ctypes
import os
import platform
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executord.core.reasons import Fault, FaultError, Reason
from executord.files.cache.blobs import BlobBatch
from executord.files.cache.promises import Promise
from executord.files.cache.spare_room import MAX_HOLDS
from executord.files.client.push import Pushed
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.files.system.idle_work import IdleWork, helped_by
from executord.files.system.parallel import side_by_side
from executord.ports import OnProgress
from tests.fakes.damage import flip, snapshot_home
from tests.fakes.files import contents, ignore_progress, new_store, opened, push, write_files

FILES = {f"d{n // 10}/f{n}": f"{n}" * 50 for n in range(60)}
IDLE = 3
NO_ROOM = Fault(Reason.DISK_FULL, "No room.")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def pushed(tmp_path: Path, store: Store) -> Pushed:
    return push(store, write_files(tmp_path / "project", FILES))


class Held:
    """Blobs that are written only once it is opened; says at which priority they were."""

    def __init__(self, files: ProjectFiles) -> None:
        self._open = threading.Event()
        self.begun = threading.Event()
        self.classes: list[int] = []
        blobs = files._parts.blobs
        self._batch = blobs.batch
        blobs.batch = self._held  # type: ignore[method-assign]

    def _held(self) -> BlobBatch:
        self.begun.set()
        assert self._open.wait(20)
        self.classes.append(io_class(threading.get_native_id()))
        return self._batch()

    def open(self) -> None:
        self._open.set()


def io_class(thread: int) -> int:
    """0: none of its own, 3: idle."""
    number = {"x86_64": 252, "aarch64": 31}.get(platform.machine())
    if number is None:
        pytest.skip("the number of ioprio_get is not known for this machine")
    return int(ctypes.CDLL(None).syscall(number, 1, thread)) >> 13


async def ready(files: ProjectFiles, pushed: Pushed, holder: str = "prefetch:p/0") -> str:
    return (await files.ready_ahead(pushed.revision, holder, ignore_progress)).way


async def pins(files: ProjectFiles) -> set[str]:
    return {holder for entry in await files.entries() for holder in entry.pinned_by}


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110 - it looks at parts that tell nobody
            await asyncio.sleep(0.005)


async def test_a_run_finds_everything_here_and_its_cost_says_so(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        assert not await files.is_here(pushed.revision)
        cost = await files.ready_ahead(pushed.revision, "ahead:r-1", ignore_progress)
        assert (cost.way, cost.files_fetched) == ("farm", 60)
        assert await files.is_here(pushed.revision)
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        assert (prepared.cost.way, prepared.cost.files_fetched) == ("snapshot", 0)
        assert prepared.cost.files_from_cache == 60
        assert await ready(files, pushed) == "snapshot"


async def test_it_is_held_until_it_is_let_go(tmp_path: Path, store: Store, pushed: Pushed) -> None:
    async with opened(tmp_path / "s", store) as files:
        await ready(files, pushed, "prefetch:p/0")
        assert await pins(files) == {"prefetch:p/0"}
        assert not (await files.prune(dry_run=True)).victims
        files.let_go("prefetch:p/0")
        files.let_go("prefetch:p/0")
        assert await pins(files) == set()
        assert (await files.prune(dry_run=True)).victims


async def test_no_more_is_held_than_a_bounded_number(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        for number in range(MAX_HOLDS + 3):
            await ready(files, pushed, f"prefetch:p/{number}")
        assert len(await pins(files)) == MAX_HOLDS
        assert "prefetch:p/0" not in await pins(files)


async def test_a_run_that_joins_makes_it_hurry(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        held = Held(files)
        ahead = asyncio.create_task(ready(files, pushed))
        await until(held.begun.is_set)
        run = asyncio.create_task(files.prepare("r-1", pushed.revision, ignore_progress))
        await until(lambda: any(job.work.hurried for job in files._parts.builds._jobs.values()))
        held.open()
        prepared = await run
        assert prepared.cost.way == "shared"
        assert await ahead == "farm"
        assert set(held.classes) == {0}


async def test_alone_it_works_at_idle_priority_also_in_its_helpers(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        held = Held(files)
        held.open()
        await ready(files, pushed)
        assert set(held.classes) == {IDLE}
        await files.prepare("r-1", pushed.revision, ignore_progress)


async def test_its_cancelled_wish_does_not_cost_a_run_that_has_joined(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        held = Held(files)
        ahead = asyncio.create_task(ready(files, pushed))
        await until(held.begun.is_set)
        run = asyncio.create_task(files.prepare("r-1", pushed.revision, ignore_progress))
        await asyncio.sleep(0.05)
        ahead.cancel()
        await asyncio.wait((ahead,))
        held.open()
        assert (await run).workspace.tree == pushed.tree
        assert await pins(files) == {"r-1"}


async def test_where_it_would_have_to_evict_it_is_dropped_with_the_numbers(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    other = push(store, write_files(tmp_path / "other", {"big": os.urandom(200_000)}), "a/b")
    async with opened(tmp_path / "s", store, max_size_bytes=400_000) as files:
        await ready(files, pushed)
        files.let_go("prefetch:p/0")
        before = await files.stats()
        with pytest.raises(FaultError) as caught:
            await ready(files, other, "prefetch:p/1")
        assert caught.value.fault.reason is Reason.DISK_FULL
        assert "without evicting" in caught.value.fault.detail
        assert caught.value.fault.evidence["needed_bytes"] == 200_704
        after = await files.stats()
        assert (after.blobs, after.evicted_bytes) == (before.blobs, 0)
        assert await pins(files) == set()


async def test_where_it_would_have_to_evict_for_inodes_it_is_dropped_with_the_numbers(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store, max_inodes=70) as files:
        with pytest.raises(FaultError) as caught:
            await ready(files, pushed)
        # 60 files, 6 directories and the one above them; 63 are below the high watermark
        assert caught.value.fault.evidence == {"needed_inodes": 67, "room_inodes": 63}
        assert (await files.stats()).blobs == 0


# -- where runs get directories of their own -------------------------------------------------------


async def test_for_runs_with_directories_of_their_own_blobs_alone_are_fetched(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store, mode="copy") as files:
        assert not await files.is_here(pushed.revision)
        cost = await files.ready_ahead(pushed.revision, "ahead:r-1", ignore_progress)
        assert (cost.way, cost.files_fetched, cost.files_from_cache) == ("blobs", 60, 0)
        assert await files.is_here(pushed.revision)
        stats = await files.stats()
        assert (stats.blobs, stats.snapshots) == (60, 0)
        again = await files.ready_ahead(pushed.revision, "ahead:r-2", ignore_progress)
        assert (again.files_fetched, again.files_from_cache) == (0, 60)
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        assert (prepared.cost.way, prepared.cost.files_fetched) == ("copy", 0)


async def test_blobs_are_fetched_at_idle_priority_until_a_run_comes_that_needs_them(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store, mode="copy") as files:
        held = Held(files)
        ahead = asyncio.create_task(ready(files, pushed))
        await until(held.begun.is_set)
        run = asyncio.create_task(files.prepare("r-1", pushed.revision, ignore_progress))
        await until(lambda: any(work.hurried for _, work in files._ahead._gathering))
        held.open()
        assert (await run).cost.way == "copy"
        assert await ahead == "blobs"
        assert set(held.classes) == {0}
        alone = Held(files)
        alone.open()
        other = push(store, write_files(tmp_path / "other", {"x": "y"}), "a/b")
        await ready(files, other)
        assert set(alone.classes) == {IDLE}


async def test_blobs_that_do_not_fit_are_not_begun_with(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store, mode="copy", max_inodes=50) as files:
        with pytest.raises(FaultError) as caught:
            await ready(files, pushed)
        assert caught.value.fault.evidence == {"needed_inodes": 60, "room_inodes": 45}
        assert (await files.stats()).blobs == 0


# -- after a restart -------------------------------------------------------------------------------


async def test_what_an_earlier_daemon_made_is_checked_ahead_and_not_by_the_run(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await ready(files, pushed)
    root = snapshot_home(tmp_path / "s", pushed.tree) / "root"
    flip(root / "d0/f1")
    async with opened(tmp_path / "s", store) as files:
        cost = await files.ready_ahead(pushed.revision, "ahead:r-1", ignore_progress)
        assert (cost.way, cost.files_fetched) == ("farm", 1)
        assert contents(root)["d0/f1"] == FILES["d0/f1"]
        seen: list[str] = []
        await files.prepare("r-1", pushed.revision, lambda progress: seen.append(progress.what))
        assert "checking files" not in seen


async def test_a_check_ahead_gives_way_until_a_run_waits_for_it(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await ready(files, pushed)
    async with opened(tmp_path / "s", store) as files:
        begun, go_on = threading.Event(), threading.Event()
        classes: list[int] = []
        integrity = files._parts.integrity
        check = integrity._make_sure

        def held(tree: str, tell: OnProgress, cancelled: threading.Event) -> bool:
            classes.append(io_class(threading.get_native_id()))
            begun.set()
            assert go_on.wait(20)
            classes.append(io_class(threading.get_native_id()))
            return check(tree, tell, cancelled)

        integrity._make_sure = held  # type: ignore[method-assign]
        ahead = asyncio.create_task(ready(files, pushed))
        await until(begun.is_set)
        run = asyncio.create_task(files.prepare("r-1", pushed.revision, ignore_progress))
        await until(lambda: any(job.idle.hurried for job in integrity._checks._jobs.values()))
        go_on.set()
        assert ((await run).cost.way, await ahead) == ("snapshot", "snapshot")
        assert classes == [IDLE, 0]


async def test_a_run_that_needs_the_room_gets_what_was_held_ahead(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    other = push(store, write_files(tmp_path / "other", {"big": os.urandom(400_000)}), "a/b")
    async with opened(tmp_path / "s", store) as files:
        sweeper = files._parts.sweeper
        asked: list[int] = []

        def full_while_held(
            incoming_bytes: int, incoming_inodes: int = 0, promise: Promise | None = None
        ) -> None:
            holders = files._parts.snapshots.holders().values()
            asked.append(incoming_bytes)
            if any(holder.startswith("prefetch:") for held in holders for holder in held):
                raise FaultError(NO_ROOM)

        await ready(files, pushed)
        sweeper.make_room = full_while_held  # type: ignore[method-assign]
        prepared = await files.prepare("r-1", other.revision, ignore_progress)
        assert prepared.cost.files_fetched == 1
        assert len(asked) == 2
        assert await pins(files) == {"r-1"}


async def test_a_run_that_joins_what_then_finds_no_room_gets_its_own_way(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        refused = asyncio.Event()
        spare = files._parts.spare
        go_on = threading.Event()
        loop = asyncio.get_running_loop()

        def refuse(incoming_bytes: int, incoming_inodes: int = 0) -> None:
            loop.call_soon_threadsafe(refused.set)
            assert go_on.wait(20)
            raise FaultError(NO_ROOM)

        spare.check = refuse  # type: ignore[method-assign]
        ahead = asyncio.create_task(ready(files, pushed))
        await refused.wait()
        run = asyncio.create_task(files.prepare("r-1", pushed.revision, ignore_progress))
        await asyncio.sleep(0.05)
        go_on.set()
        assert (await run).cost.files_fetched == 60
        with pytest.raises(FaultError, match="No room"):
            await ahead


async def test_what_is_no_digest_or_not_in_the_store_is_told(tmp_path: Path, store: Store) -> None:
    async with opened(tmp_path / "s", store) as files:
        for revision in ("head", "sha256:" + "0" * 64):
            assert not await files.is_here(revision)
            with pytest.raises(FaultError) as caught:
                await files.ready_ahead(revision, "prefetch:p/0", ignore_progress)
            assert caught.value.fault.reason is Reason.REVISION_NOT_FOUND
        assert await pins(files) == set()


async def test_more_than_there_are_threads_for_wait_for_their_turn(
    tmp_path: Path, store: Store
) -> None:
    several = [
        push(store, write_files(tmp_path / f"p{n}", {"f": f"{n}"}), f"a/p{n}") for n in range(5)
    ]
    async with opened(tmp_path / "s", store) as files:
        ways = await asyncio.gather(
            *(ready(files, pushed, f"prefetch:p/{n}") for n, pushed in enumerate(several))
        )
        assert len(ways) == 5
        assert all(way in ("farm", "layer") for way in ways)


# -- threads that give way -------------------------------------------------------------------------


@pytest.fixture
def thread() -> Iterator[int]:
    yield threading.get_native_id()
    assert io_class(threading.get_native_id()) == 0


def test_a_thread_gives_way_while_it_takes_part_and_no_longer(thread: int) -> None:
    with IdleWork().in_this_thread():
        assert io_class(thread) == IDLE
    assert io_class(thread) == 0


def test_work_that_somebody_waits_for_never_gives_way(thread: int) -> None:
    work = IdleWork()
    with work.in_this_thread():
        work.hurry()
        assert io_class(thread) == 0
        classes = side_by_side(2, range(4), lambda _: io_class(threading.get_native_id()))
        assert {seen for _, seen in classes} == {0}
    with IdleWork(hurried=True).in_this_thread():
        assert io_class(thread) == 0


def test_helpers_give_way_with_who_asked_them(thread: int) -> None:
    with IdleWork().in_this_thread():
        classes = side_by_side(2, range(4), lambda _: io_class(threading.get_native_id()))
        assert {seen for _, seen in classes} == {IDLE}
    classes = side_by_side(2, range(4), lambda _: io_class(threading.get_native_id()))
    assert {seen for _, seen in classes} == {0}


def test_a_process_that_helps_gives_way_as_long_as_it_does(thread: int) -> None:
    work = IdleWork()
    with work.in_this_thread(), subprocess.Popen(["sleep", "60"]) as helper:
        try:
            assert io_class(helper.pid) == IDLE
            with helped_by(helper.pid):
                assert io_class(helper.pid) == IDLE
                work.hurry()
                assert io_class(helper.pid) == 0
            with IdleWork().in_this_thread(), helped_by(helper.pid):
                assert io_class(helper.pid) == IDLE
            assert io_class(helper.pid) == 0
        finally:
            helper.kill()

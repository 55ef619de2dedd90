"""A disk that is full although room was made, a store that is away for a moment, and FIFOs."""

import asyncio
import errno
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from executord.core.eviction import Space
from executord.core.reasons import FaultError, Reason
from executord.files.cache.blobs import BlobKey
from executord.files.cache.layout import Layout
from executord.files.cache.shared_work import SharedWork
from executord.files.cache.sweeper import Limits
from executord.files.cache.trash import STEP_FILES
from executord.files.faults import from_os_error
from executord.files.progress import Counter
from executord.files.project_files import ProjectFiles
from executord.files.store.bucket import MissingObjectError
from executord.files.store.directory_bucket import DirectoryBucket
from executord.files.store.store import Store
from executord.files.store.unpack import unpack
from executord.files.system.disk import FreeSpace
from executord.ports import OnProgress, Progress
from tests.fakes.files import ignore_progress, new_store, opened, push, write_files

MEBIBYTE = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


def revision(tmp_path: Path, store: Store, name: str, size: int = MEBIBYTE) -> str:
    files = write_files(tmp_path / name, {f"{name}/data": os.urandom(size)})
    return push(store, files, f"alice/{name}").revision


def trees(files: ProjectFiles) -> set[str]:
    return {ground.tree for ground in files._parts.snapshots.grounds()}


# -- the disk ------------------------------------------------------------------------------------


def fill_the_disk(files: ProjectFiles, times: int) -> list[int]:
    """The next fetches find it full, whatever was made room for. Gives what is left of them."""
    source = files._parts.fetcher
    fetch, left = source.blobs, [times]

    def full(sizes: Mapping[BlobKey, int], counter: Counter, cancelled: threading.Event) -> None:
        if left[0]:
            left[0] -= 1
            raise from_os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "write")
        fetch(sizes, counter, cancelled)

    source.blobs = full  # type: ignore[method-assign]
    return left


@pytest.mark.parametrize("mode", ["overlay", "copy"])
async def test_a_disk_that_is_full_in_spite_of_its_promise_gets_one_more_try(
    tmp_path: Path, store: Store, mode: str
) -> None:
    first, second = (revision(tmp_path, store, name) for name in ("first", "second"))
    async with opened(tmp_path / "s", store, mode=mode) as files:
        await files.ready_ahead(first, "prefetch:p/0", ignore_progress)
        assert files._parts.blobs.count == 1
        left = fill_the_disk(files, times=1)
        prepared = await files.prepare("r-1", second, ignore_progress)
        assert (left, prepared.cost.files_fetched) == ([0], 1)
        assert files._parts.blobs.count == 1  # what was made ahead went
        assert files._parts.sweeper.promises._all == []


async def test_a_disk_that_stays_full_ends_the_run_after_the_second_try(
    tmp_path: Path, store: Store
) -> None:
    wanted = revision(tmp_path, store, "wanted")
    async with opened(tmp_path / "s", store) as files:
        left = fill_the_disk(files, times=5)
        with pytest.raises(FaultError) as caught:
            await files.prepare("r-1", wanted, ignore_progress)
        assert (caught.value.fault.reason, left) == (Reason.DISK_FULL, [3])
        assert files._parts.sweeper.promises._all == []


async def test_what_is_made_ahead_gets_no_second_try(tmp_path: Path, store: Store) -> None:
    wanted = revision(tmp_path, store, "wanted")
    async with opened(tmp_path / "s", store) as files:
        left = fill_the_disk(files, times=5)
        with pytest.raises(FaultError):
            await files.ready_ahead(wanted, "prefetch:p/0", ignore_progress)
        assert left == [4]


async def test_a_second_build_makes_room_for_what_the_first_was_promised(
    tmp_path: Path, store: Store
) -> None:
    old = revision(tmp_path, store, "old", 4 * MEBIBYTE)
    async with opened(tmp_path / "s", store) as files:
        sweeper = files._parts.sweeper
        await files.prepare("r-1", old, ignore_progress)
        await files.discard("r-1", keep_workspace=False)
        sweeper.free = lambda: FreeSpace(10 * MEBIBYTE, None)  # type: ignore[method-assign]
        with sweeper.promises.one() as first, sweeper.promises.one() as second:
            sweeper.make_room(8 * MEBIBYTE, 1, first)
            assert len(trees(files)) == 1
            sweeper.promises.kept(first, Space(7 * MEBIBYTE, 1))
            sweeper.make_room(8 * MEBIBYTE, 1, second)
            assert len(trees(files)) == 1
            assert second.left == Space(8 * MEBIBYTE, 1)
            with sweeper.promises.one() as third:
                sweeper.make_room(4 * MEBIBYTE, 1, third)  # evicts, and is not refused
            assert trees(files) == set()


# -- the trash -----------------------------------------------------------------------------------


async def test_trash_of_an_earlier_daemon_goes_before_anything_useful_does(
    tmp_path: Path, store: Store
) -> None:
    kept = revision(tmp_path, store, "kept")
    async with opened(tmp_path / "s", store) as files:
        await files.prepare("r-1", kept, ignore_progress)
        await files.discard("r-1", keep_workspace=False)
    layout = Layout(tmp_path / "s")
    async with opened(tmp_path / "s", store) as files:
        sweeper, stop = files._parts.sweeper, threading.Event()
        await asyncio.to_thread(sweeper.empty_trash, stop)
        many = STEP_FILES * 4

        def free() -> FreeSpace:
            return FreeSpace((many - len(list(layout.trash.iterdir()))) * MEBIBYTE, None)

        sweeper.free = free  # type: ignore[method-assign]
        write_files(layout.trash, {str(number): "" for number in range(many)})
        await asyncio.to_thread(sweeper.make_room, STEP_FILES * MEBIBYTE)
        assert len(trees(files)) == 1
        assert len(list(layout.trash.iterdir())) == many - STEP_FILES
        sweeper.limits = Limits(
            max_size_bytes=1 << 40,
            low_watermark=0.8,
            high_watermark=0.9,
            min_free_bytes=2 * STEP_FILES * MEBIBYTE,
        )
        await asyncio.to_thread(files._caretaker._sweep)
        assert len(trees(files)) == 1
        assert len(list(layout.trash.iterdir())) == many - 2 * STEP_FILES
        del sweeper.free


# -- the store -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["overlay", "copy"])
async def test_a_store_that_is_away_for_a_moment_only_delays_the_run(
    tmp_path: Path, store: Store, mode: str
) -> None:
    wanted = revision(tmp_path, store, "wanted")
    told: list[Progress] = []
    away = tmp_path / "away"
    (tmp_path / "store").rename(away)

    def tell(progress: Progress) -> None:
        told.append(progress)
        if away.exists():
            away.rename(tmp_path / "store")

    async with opened(tmp_path / "s", store, mode=mode, store_patience_seconds=30.0) as files:
        prepared = await files.prepare("r-1", wanted, tell)
    assert prepared.cost.files_fetched == 1
    assert "the store does not answer; again in 1 s" in [each.detail for each in told]


async def test_who_waits_for_a_store_can_be_cancelled_and_others_faults_are_not_waited_for(
    tmp_path: Path, store: Store
) -> None:
    async with opened(tmp_path / "s", store, store_patience_seconds=3600.0) as files:
        with pytest.raises(FaultError) as caught:
            await files.prepare("r-0", "sha256:" + "0" * 64, ignore_progress)
        assert caught.value.fault.reason is Reason.REVISION_NOT_FOUND
        (tmp_path / "store").rename(tmp_path / "away")
        waits = asyncio.Event()
        run = asyncio.create_task(files.prepare("r-1", "sha256:" + "1" * 64, lambda _: waits.set()))
        await waits.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run


# -- what is no file -----------------------------------------------------------------------------


def test_a_fifo_in_place_of_an_object_is_told_and_holds_nobody_up(tmp_path: Path) -> None:
    bucket = DirectoryBucket(tmp_path, create=False)
    os.mkfifo(tmp_path / "head")
    (tmp_path / "folder").mkdir()
    for key in ("head", "folder"):
        for ask in (
            lambda key=key: list(bucket.read(key)),
            lambda key=key: bucket.read_range(key, 0, 1),
        ):
            with pytest.raises(FaultError, match=f"{key} in the store .* is no regular file") as e:
                ask()
            assert e.value.fault.reason is Reason.FILES_CORRUPT
    with pytest.raises(FaultError, match="head"):
        bucket.swap("head", b"", b"new")
    with pytest.raises(MissingObjectError):
        list(bucket.read("nothing"))
    pack = str(tmp_path / "head")
    assert unpack(pack, 0, 1, str(tmp_path), -1, -1, []) == ([], errno.EINVAL, pack)


async def test_work_that_never_looks_up_keeps_nobody_from_closing() -> None:
    go_on = threading.Event()

    def stuck(_: OnProgress, __: threading.Event) -> bool:
        return go_on.wait(60)

    with ThreadPoolExecutor(1) as threads, capture_logs() as logs:
        work = SharedWork[bool](threads, close_seconds=0.05)
        waiting = asyncio.create_task(work.join("tree", stuck, ignore_progress))
        await asyncio.sleep(0)
        await work.close()
        assert [(each["event"], each["work"]) for each in logs] == [
            ("shared_work.stuck", ["shared tree"])
        ]
        go_on.set()
        assert await waiting

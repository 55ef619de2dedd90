"""All that the cache holds is read again: by `cache verify`, and in the background by the scrub."""

import asyncio
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from executord.files.cache.inodes import Inodes
from executord.files.client.push import Pushed
from executord.files.store.store import Store
from tests.fakes.damage import (
    flip,
    make_project,
    prepare,
    seasoned,
    until,
    verify,
)
from tests.fakes.files import (
    contents,
    new_store,
    opaque,
    opened,
    push,
    whiteout,
    write_files,
)
from tests.fakes.merged import shown

if TYPE_CHECKING:
    from executord.ports import Progress


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture
def pushed(store: Store, project: Path) -> Pushed:
    return push(store, project)


# -- verify --------------------------------------------------------------------------------------


async def test_verify_finds_everything_right(tmp_path: Path, store: Store, pushed: Pushed) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        report = await verify(files)
    assert report.is_good
    assert (report.snapshots, report.blobs, report.revisions) == (1, 3, 1)
    assert report.bytes_read == 16
    assert report.trees >= 2


async def test_verify_reads_what_was_believed_and_reports_without_changing_anything(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        flip(root / "b/c.txt")
        report = await verify(files)
        assert (report.damaged, report.mended, report.is_good) == (1, 0, False)
        (found,) = report.objects
        assert found.kind == "blob"
        assert found.what == "b/c.txt has other content"
        assert found.runs == ("r-1",)
        assert list((tmp_path / "s/quarantine").iterdir()) == []
        assert await prepare(files, pushed.revision, "r-2") == "farm"
        assert contents(root) == contents(project)


async def test_verify_with_repair_mends(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    (root / "link").unlink()
    async with opened(tmp_path / "s", store) as files:
        report = await verify(files, repair=True)
        assert (report.damaged, report.mended) == (2, 2)
        assert contents(root) == contents(project)
        assert (await verify(files)).is_good


async def test_verify_looks_at_loose_blobs_trees_and_revisions(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        await files.discard("r-1", keep_workspace=False)
    for home in (tmp_path / "s/snapshots-v1").iterdir():
        home.rename(tmp_path / "away")
    for kind in ("blobs-v1", "trees-v1", "revisions-v1"):
        flip(next(path for path in (tmp_path / "s" / kind).rglob("*") if path.is_file()))
    async with opened(tmp_path / "s", store) as files:
        report = await verify(files)
        assert sorted(found.kind for found in report.objects) == ["blob", "revision", "tree"]
        report = await verify(files, repair=True)
        assert (report.damaged, report.mended) == (3, 3)
        assert (await verify(files)).is_good


async def test_what_cannot_be_mended_is_said(tmp_path: Path, store: Store, pushed: Pushed) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    (tmp_path / "store").rename(tmp_path / "away")
    async with opened(tmp_path / "s", store.url) as files:
        report = await verify(files, repair=True)
    assert (report.damaged, report.mended, report.is_good) == (1, 0, False)
    assert str(tmp_path / "store") in report.objects[0].why_not


async def test_a_wrong_mode_does_not_hide_wrong_content(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    (root / "b/c.txt").chmod(0o600)
    async with opened(tmp_path / "s", store) as files:
        (found,) = (await verify(files)).objects
    assert found.what == "b/c.txt has mode 600 and has other content"


async def test_a_loose_blob_is_named_with_all_that_is_wrong_with_it(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    (root / "b/c.txt").chmod(0o600)
    for home in (tmp_path / "s/snapshots-v1").iterdir():
        home.rename(tmp_path / "away")
    async with opened(tmp_path / "s", store) as files:
        (found,) = (await verify(files)).objects
    assert found.what == "has mode 600 and has other content"


async def test_what_is_put_into_quarantine_is_in_the_accounts_at_once(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    async with opened(tmp_path / "s", store) as files:
        before = (await files.stats()).report
        await verify(files, repair=True)
        after = (await files.stats()).report
    assert before is not None
    assert after is not None
    assert (before.kinds["quarantine"].bytes, before.kinds["quarantine"].entries) == (0, 0)
    assert after.kinds["quarantine"].bytes == 2 * 4096  # the blob and its note
    assert after.kinds["quarantine"].entries == 1


async def test_a_check_that_nobody_waits_for_any_more_ends(
    tmp_path: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"many/{n}": os.urandom(2 << 20) for n in range(20)})
    pushed = push(store, project)
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        steps = files.verify(repair=False)
        await anext(steps)
        await anext(steps)
        await steps.aclose()  # type: ignore[attr-defined]
        assert not [each for each in threading.enumerate() if each.name.startswith("files-verify")]
        assert (await verify(files)).is_good


async def test_two_checks_at_once_take_turns(tmp_path: Path, store: Store, pushed: Pushed) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        first, second = await asyncio.gather(verify(files), verify(files))
    assert first.is_good
    assert second.is_good


async def test_a_blob_found_bad_through_two_trees_is_one_object(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    (project / "new.txt").write_text("new")
    second = push(store, project)
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, second.revision)
        flip(root / "b/c.txt")
        (found,) = (await verify(files)).objects
    assert sorted(found.trees) == sorted([pushed.tree, second.tree])


# -- the scrub -----------------------------------------------------------------------------------


async def test_the_scrub_finds_and_mends_before_a_run_comes(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    seen: list[Progress] = []
    async with opened(tmp_path / "s", store, scrub_bytes_per_second=1 << 30) as files:

        async def is_mended() -> bool:
            return (await files.stats()).mended == 1

        await until(is_mended)
        assert contents(root) == contents(project)
        await files.prepare("r-1", pushed.revision, seen.append)


async def test_after_a_whole_pass_nothing_is_left_to_check(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    await seasoned(tmp_path, store, pushed)
    seen: list[Progress] = []
    async with opened(tmp_path / "s", store, scrub_bytes_per_second=1 << 30) as files:

        async def is_through() -> bool:
            return files._scrub.passes == 1

        await until(is_through)
        await files.prepare("r-1", pushed.revision, seen.append)
        await asyncio.sleep(0)
    assert seen == []


async def test_a_slow_scrub_does_not_hold_up_the_end(
    tmp_path: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"many/{n}": str(n) for n in range(200)})
    await seasoned(tmp_path, store, push(store, project))
    async with opened(tmp_path / "s", store, scrub_bytes_per_second=1024):
        await asyncio.sleep(0.2)


# -- the parts -----------------------------------------------------------------------------------


def test_inodes_are_a_set_of_numbers() -> None:
    inodes = Inodes()
    numbers = [1, 2, 63, 64, 4095, 4096, 1 << 40, (1 << 63) + 5]
    for number in numbers:
        assert number not in inodes
        inodes.add(number)
        assert number in inodes
    inodes.discard(64)
    inodes.discard(12345)
    assert [number for number in numbers if number not in inodes] == [64]


@pytest.mark.skipif(os.geteuid() != 0, reason="makes whiteouts and mounts")
def test_the_merged_view_is_what_overlayfs_shows(tmp_path: Path) -> None:
    bottom = write_files(
        tmp_path / "0",
        {"same": "0", "gone": "0", "d/kept": "0", "d/gone": "0", "hidden/x": "0", "file": "0",
         "dir/x": "0", "deep/a/b": "0"},
    )  # fmt: skip
    middle = write_files(tmp_path / "1", {"same": "1", "d/new": "1", "dir": "1", "deep/a/c": "1"})
    whiteout(middle / "gone")
    whiteout(middle / "d/gone")
    opaque(middle / "hidden")
    (middle / "hidden/y").write_text("1")
    whiteout(middle / "file")
    top = write_files(tmp_path / "2", {"file/below": "2", "gone": "2", "deep/a/d": "2"})
    whiteout(top / "deep" / "a" / "b")
    opaque(top / "dir")
    (top / "dir/z").write_text("2")
    lowers = [top, middle, bottom]
    (tmp_path / "m").mkdir()
    options = f"lowerdir={':'.join(map(str, lowers))},userxattr"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(tmp_path / "m")], check=True
    )
    try:
        assert shown(lowers) == contents(tmp_path / "m")
    finally:
        subprocess.run(["umount", str(tmp_path / "m")], check=True)
    assert shown(lowers)["deep/a/c"] == "1"
    assert "gone" in shown(lowers)

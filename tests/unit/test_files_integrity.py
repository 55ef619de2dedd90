"""No run gets wrong bytes: what is damaged on the node is found at its first use, and mended."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.files.client.push import Pushed
from executord.files.store.store import Store
from executord.ports import Progress
from tests.fakes.damage import (
    flip,
    layering,
    make_project,
    prepare,
    seasoned,
    verify,
)
from tests.fakes.files import (
    contents,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)
from tests.fakes.merged import shown


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture
def pushed(store: Store, project: Path) -> Pushed:
    return push(store, project)


# -- first use after a restart -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "twin.txt", "b/c.txt", "b/run.sh"])
async def test_a_flipped_bit_is_found_and_fetched_again(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed, name: str
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / name, at=2)
    async with opened(tmp_path / "s", store) as files:
        assert await prepare(files, pushed.revision) == "farm"
        assert contents(root) == contents(project)
        stats = await files.stats()
        assert (stats.damaged, stats.mended) == (1, 1)
        assert await prepare(files, pushed.revision, "r-2") == "snapshot"


def _break_missing(root: Path) -> None:
    (root / "b/c.txt").unlink()


def _break_extra(root: Path) -> None:
    (root / "b/extra").write_text("x")


def _break_name(root: Path) -> None:
    (root / "b/c.txt").rename(root / "b/c.tyt")


def _break_link(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("b/c.tyt")


def _break_bit(root: Path) -> None:
    (root / "b/run.sh").chmod(0o644)


def _break_kind(root: Path) -> None:
    (root / "empty").rmdir()
    (root / "empty").write_text("")


def _break_cut(root: Path) -> None:
    os.truncate(root / "a.txt", 0)


def _break_longer(root: Path) -> None:
    with (root / "a.txt").open("ab") as file:
        file.write(b"more")


def _break_directory_mode(root: Path) -> None:
    (root / "b").chmod(0o700)


def _break_blobs_record(root: Path) -> None:
    flip(root.parent / "blobs", at=3)


def _break_trees_record(root: Path) -> None:
    flip(root.parent / "trees", at=3)


BREAKS = [
    _break_missing,
    _break_extra,
    _break_name,
    _break_link,
    _break_bit,
    _break_kind,
    _break_cut,
    _break_longer,
    _break_directory_mode,
    _break_blobs_record,
    _break_trees_record,
]


@pytest.mark.parametrize("damage", BREAKS, ids=[damage.__name__[7:] for damage in BREAKS])
async def test_whatever_is_wrong_with_the_tree_that_a_run_would_see_is_mended(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed, damage: Callable[[Path], None]
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    damage(root)
    async with opened(tmp_path / "s", store) as files:
        assert await prepare(files, pushed.revision) == "farm"
        assert contents(root) == contents(project)
        assert (root / "b/run.sh").stat().st_mode & 0o777 == 0o755
        assert (root / "b").stat().st_mode & 0o777 == 0o755
        assert (await verify(files)).is_good


async def test_what_is_right_is_used_as_it_is_and_looked_at_once(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    seen: list[Progress] = []
    async with opened(tmp_path / "s", store) as files:
        prepared = await files.prepare("r-1", pushed.revision, seen.append)
        await asyncio.sleep(0)
        assert prepared.cost.way == "snapshot"
        assert [progress.what for progress in seen][-1] == "checking files"
        assert (seen[-1].files_done, seen[-1].files_total) == (5, 5)
        seen.clear()
        flip(root / "a.txt")  # which nobody can know before the scrub, or `verify`, comes by
        await files.prepare("r-2", pushed.revision, seen.append)
        await asyncio.sleep(0)
        assert seen == []


async def test_what_this_daemon_made_itself_is_not_read_again(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    seen: list[Progress] = []
    async with opened(tmp_path / "s", store) as files:
        await files.prepare("r-1", pushed.revision, seen.append)
        await files.prepare("r-2", pushed.revision, seen.append)
        await asyncio.sleep(0)
    assert "checking files" not in {progress.what for progress in seen}


async def test_a_new_tree_made_of_old_blobs_has_them_checked(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    (project / "new.txt").write_text("new")
    again = push(store, project)
    async with opened(tmp_path / "s", store) as files:
        prepared = await files.prepare("r-1", again.revision, ignore_progress)
        lower = files._parts.snapshots.lowers(prepared.workspace.tree)
        assert shown(lower) == contents(project)
        assert (await files.stats()).damaged >= 1


async def test_runs_that_wait_for_the_same_check_share_it_and_may_leave_it(
    tmp_path: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"many/{n}": os.urandom(40_000) for n in range(300)})
    pushed = push(store, project)
    await seasoned(tmp_path, store, pushed)
    async with opened(tmp_path / "s", store) as files:
        begun = asyncio.Event()

        def note(progress: Progress) -> None:
            if progress.what == "checking files":
                begun.set()

        first = asyncio.create_task(files.prepare("r-1", pushed.revision, note))
        second = asyncio.create_task(files.prepare("r-2", pushed.revision, ignore_progress))
        await begun.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).cost.way == "snapshot"
        await files.discard("r-1", keep_workspace=False)


async def test_in_the_background_a_run_does_not_wait_until_something_was_found(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    seen: list[Progress] = []
    async with opened(tmp_path / "s", store, verify="background") as files:
        await files.prepare("r-1", pushed.revision, seen.append)
        assert seen == []
        await files.discard("r-1", keep_workspace=False)
        flip(root / "a.txt")
        assert not (await verify(files)).is_good
        assert await prepare(files, pushed.revision, "r-2") == "farm"
        assert contents(root) == contents(project)


@pytest.mark.parametrize("where", ["own file", "whiteout", "base", "opaque", "base's name"])
async def test_damage_anywhere_in_a_chain_of_layers_is_mended(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed, where: str
) -> None:
    write_files(project, {"new/n": "nnnn", "a.txt": "a changed one"})
    (project / "b/c.txt").unlink()
    (project / "empty").rmdir()
    (project / "empty").symlink_to("a.txt")
    second = push(store, project)
    async with layering(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision, "r-1")
        assert await prepare(files, second.revision, "r-2") == "layer"
        await files.discard("r-1", keep_workspace=False)
        await files.discard("r-2", keep_workspace=False)
        top, base = files._parts.snapshots.lowers(second.tree)
    match where:
        case "own file":
            flip(top / "new/n")
        case "whiteout":
            (top / "b/c.txt").unlink()
        case "base":
            flip(base / "twin.txt")
        case "opaque":
            os.setxattr(top / "b", "user.overlay.opaque", b"y")
        case "base's name":
            (base / "b/run.sh").rename(base / "b/run.sx")
    async with layering(tmp_path / "s", store) as files:
        workspace = (await files.prepare("r-3", second.revision, ignore_progress)).workspace
        assert shown(files._parts.snapshots.lowers(workspace.tree)) == contents(project)
        assert (await verify(files)).is_good
        assert (await files.stats()).damaged >= 1


async def test_a_layer_made_on_what_was_checked_costs_no_walk_of_all_that_is_below(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    (project / "new.txt").write_text("new")
    second = push(store, project)
    async with layering(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
    seen: list[Progress] = []
    async with layering(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision, "r-1")
        prepared = await files.prepare("r-2", second.revision, seen.append)
        await asyncio.sleep(0)
    assert prepared.cost.way == "layer"
    checked = [progress for progress in seen if progress.what == "checking files"]
    assert checked[-1].files_done == 1


@pytest.mark.parametrize("mode", ["copy"])
async def test_a_directory_of_the_runs_own_is_made_of_checked_blobs_alone(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed, mode: str
) -> None:
    async with opened(tmp_path / "s", store, mode=mode) as files:
        await prepare(files, pushed.revision)
    for path in (tmp_path / "s/blobs-v1").rglob("*"):
        if path.is_file():
            flip(path)
    async with opened(tmp_path / "s", store, mode=mode) as files:
        await prepare(files, pushed.revision, "r-2")
        assert (await files.stats()).damaged == 3
    made = next(path for path in (tmp_path / "s").rglob("r-2/files"))
    assert contents(made) == contents(project)


# -- when it cannot be mended --------------------------------------------------------------------


async def test_without_a_good_copy_in_the_store_the_run_is_told_so(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    for kept in (tmp_path / "store").rglob("*"):
        if kept.is_file() and (b"cccc" in kept.read_bytes()):
            kept.write_bytes(kept.read_bytes().replace(b"cccc", b"cccd"))
    async with opened(tmp_path / "s", store) as files:
        with pytest.raises(FaultError) as caught:
            await prepare(files, pushed.revision)
        assert caught.value.fault.reason is Reason.FILES_CORRUPT
        assert "store" in caught.value.fault.detail
    assert list((tmp_path / "s/tmp").iterdir()) == []


async def test_a_store_that_is_away_is_told_as_such_and_mending_follows(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    (tmp_path / "store").rename(tmp_path / "away")
    async with opened(tmp_path / "s", store.url) as files:
        with pytest.raises(FaultError) as caught:
            await prepare(files, pushed.revision)
        assert caught.value.fault.reason is Reason.STORE_UNAVAILABLE
        (tmp_path / "away").rename(tmp_path / "store")
        await prepare(files, pushed.revision)
        assert contents(root) == contents(project)

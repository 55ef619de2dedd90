"""Preparing a run's files: from the store to a workspace, whole or not at all."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from executord.core.reasons import Fault, FaultError, Reason
from executord.files.cache.blobs import BlobKey
from executord.files.client.push import Pushed
from executord.files.model import digests, revisions, trees
from executord.files.model.trees import EMPTY_TREE
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import Prepared, Progress, Revision
from tests.fakes.files import (
    FakeVolumes,
    contents,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)

FILES = {"a.txt": "a", "twin.txt": "a", "b/c.txt": "c", "b/run.sh": "#!", "empty/": "", "zero": ""}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = write_files(tmp_path / "project", FILES)
    (root / "b/run.sh").chmod(0o755)
    (root / "link").symlink_to("b/c.txt")
    return root


@pytest.fixture
def pushed(store: Store, project: Path) -> Pushed:
    return push(store, project)


def lower(state: Path, tree: str) -> Path:
    return state / "snapshots-v1" / tree.removeprefix("sha256:") / "root"


async def prepare(files: ProjectFiles, revision: str, run_id: str = "r-1") -> Prepared:
    return await files.prepare(run_id, revision, ignore_progress)


async def refusal(files: ProjectFiles, revision: str, run_id: str = "r-1") -> Fault:
    with pytest.raises(FaultError) as caught:
        await prepare(files, revision, run_id)
    return caught.value.fault


def stored_blobs(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store/blobs").rglob("*") if path.is_file()]


def nothing_half_made(state: Path) -> None:
    assert list((state / "tmp").iterdir()) == []


# -- the main way --------------------------------------------------------------------------------


async def test_a_workspace_stands_on_the_revisions_files(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    volumes = FakeVolumes()
    async with opened(tmp_path / "s", store, volumes=volumes) as files:
        prepared = await prepare(files, pushed.revision)
    workspace = prepared.workspace
    assert workspace.volume == "executord-0123abcd-r-1"
    assert (workspace.tree, workspace.base_revision) == (pushed.tree, pushed.revision)
    assert contents(lower(tmp_path / "s", pushed.tree)) == contents(project)
    volume = volumes.volumes[workspace.volume]
    assert volume["lower"] == (lower(tmp_path / "s", pushed.tree),)
    assert volume["upper"] == tmp_path / "s/runs/r-1/upper"
    assert volume["work"] == tmp_path / "s/runs/r-1/work"
    assert volume["labels"] == {"executord.instance": "0123abcd", "executord.run": "r-1"}
    nothing_half_made(tmp_path / "s")


async def test_the_first_time_fetches_and_the_second_takes_the_snapshot(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        first = (await prepare(files, pushed.revision, "r-1")).cost
        second = (await prepare(files, pushed.revision, "r-2")).cost
        stats = await files.stats()
    assert (first.way, first.files_fetched, first.bytes_fetched) == ("farm", 4, 4)
    assert (second.way, second.files_fetched, second.files_from_cache) == ("snapshot", 0, 6)
    assert (stats.blobs, stats.snapshots, stats.workspaces) == (4, 1, 2)
    assert (stats.misses_files, stats.hits_files) == (4, 8)


async def test_a_revision_with_one_file_changed_fetches_that_file_alone(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision, "r-1")
        (project / "b/c.txt").write_text("changed")
        again = push(store, project)
        cost = (await prepare(files, again.revision, "r-2")).cost
    assert (cost.way, cost.files_fetched, cost.bytes_fetched) == ("farm", 1, 7)
    assert contents(lower(tmp_path / "s", again.tree)) == contents(project)


async def test_a_snapshot_that_is_here_needs_no_store(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision, "r-1")
    (tmp_path / "store").rename(tmp_path / "away")
    async with opened(tmp_path / "s", store.url) as files:
        assert (await prepare(files, pushed.revision, "r-2")).cost.way == "snapshot"


async def test_no_revision_starts_empty(tmp_path: Path, store: Store) -> None:
    async with opened(tmp_path / "s", store) as files:
        prepared = await prepare(files, "")
    assert (prepared.workspace.tree, prepared.workspace.base_revision) == (EMPTY_TREE, "")
    assert prepared.cost.way == "empty"
    assert contents(lower(tmp_path / "s", EMPTY_TREE)) == {}


async def test_files_of_equal_content_have_inodes_of_their_own(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
    root = lower(tmp_path / "s", pushed.tree)
    inodes = [path.stat().st_ino for path in root.rglob("*") if path.is_file()]
    regular = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len({path.lstat().st_ino for path in regular}) == len(regular) == 5
    assert len(inodes) == 6


async def test_modes_follow_the_executable_bit_alone(
    tmp_path: Path, store: Store, project: Path
) -> None:
    (project / "a.txt").chmod(0o600)
    (project / "b/run.sh").chmod(0o4777)
    before = os.umask(0o077)
    try:
        async with opened(tmp_path / "s", store) as files:
            tree = (await prepare(files, push(store, project).revision)).workspace.tree
    finally:
        os.umask(before)
    root = lower(tmp_path / "s", tree)
    assert (root / "a.txt").stat().st_mode & 0o7777 == 0o644
    assert (root / "b/run.sh").stat().st_mode & 0o7777 == 0o755
    assert (root / "b").stat().st_mode & 0o7777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
async def test_all_of_it_belongs_to_the_user_of_the_runs(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store, user=(1234, 2345)) as files:
        await prepare(files, pushed.revision)
    root = lower(tmp_path / "s", pushed.tree)
    seen = {(path.lstat().st_uid, path.lstat().st_gid) for path in [root, *root.rglob("*")]}
    assert seen == {(1234, 2345)}
    upper = tmp_path / "s/runs/r-1/upper"
    assert (upper.stat().st_uid, upper.stat().st_mode & 0o777) == (1234, 0o755)


async def test_runs_that_want_the_same_files_share_one_fetch(
    tmp_path: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"many/{n}": f"{n}" for n in range(500)})
    revision = push(store, project).revision
    async with opened(tmp_path / "s", store) as files:
        costs = [
            prepared.cost
            for prepared in await asyncio.gather(
                *(prepare(files, revision, f"r-{n}") for n in range(4))
            )
        ]
    assert sorted(cost.way for cost in costs) == ["farm", "shared", "shared", "shared"]
    assert sum(cost.files_fetched for cost in costs) == 504


async def test_one_who_gives_up_does_not_spoil_it_for_the_others(
    tmp_path: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"many/{n}": f"{n}" for n in range(2000)})
    revision = push(store, project).revision
    async with opened(tmp_path / "s", store) as files:
        first = asyncio.create_task(prepare(files, revision, "r-1"))
        second = asyncio.create_task(prepare(files, revision, "r-2"))
        await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).workspace.base_revision == revision
        await files.discard("r-1", keep_workspace=False)


async def test_when_the_last_one_gives_up_the_work_ends_and_can_be_begun_again(
    tmp_path: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"many/{n}": f"{n}" for n in range(3000)})
    revision = push(store, project).revision
    async with opened(tmp_path / "s", store) as files:
        begun = asyncio.Event()

        def note(_: Progress) -> None:
            begun.set()

        task = asyncio.create_task(files.prepare("r-1", revision, note))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        prepared = await prepare(files, revision, "r-1")
        assert contents(lower(tmp_path / "s", prepared.workspace.tree)) == contents(project)
    nothing_half_made(tmp_path / "s")


async def test_progress_says_how_far_it_is(tmp_path: Path, store: Store, pushed: Pushed) -> None:
    seen: list[Progress] = []
    async with opened(tmp_path / "s", store) as files:
        await files.prepare("r-1", pushed.revision, seen.append)
        await asyncio.sleep(0)
    fetching = [progress for progress in seen if progress.what == "fetching files"]
    assert (fetching[-1].files_done, fetching[-1].files_total) == (4, 4)
    assert (fetching[-1].bytes_done, fetching[-1].bytes_total) == (4, 4)


# -- repeating -----------------------------------------------------------------------------------


async def test_preparing_again_gives_a_fresh_workspace(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        (tmp_path / "s/runs/r-1/upper/left").write_text("left")
        again = await prepare(files, pushed.revision)
    assert again.workspace.way == "snapshot"
    assert list((tmp_path / "s/runs/r-1/upper").iterdir()) == []


async def test_a_volume_that_cannot_be_removed_keeps_the_workspace_as_it_is(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    class Stuck(FakeVolumes):
        async def remove_volume(self, name: str) -> None:
            raise FaultError(Fault(Reason.ENGINE_REFUSED, "volume is in use"))

    async with opened(tmp_path / "s", store, volumes=Stuck()) as files:
        await prepare(files, pushed.revision)
        (tmp_path / "s/runs/r-1/upper/left").write_text("left")
        assert (await refusal(files, pushed.revision)).reason is Reason.ENGINE_REFUSED
    assert (tmp_path / "s/runs/r-1/upper/left").exists()


async def test_an_engine_that_refuses_is_told_and_a_second_try_works(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    volumes = FakeVolumes()
    volumes.refuses = FaultError(Fault(Reason.ENGINE_UNAVAILABLE, "gone"))
    async with opened(tmp_path / "s", store, volumes=volumes) as files:
        assert (await refusal(files, pushed.revision)).reason is Reason.ENGINE_UNAVAILABLE
        volumes.refuses = None
        await prepare(files, pushed.revision)
    assert len(volumes.volumes) == 1


async def test_discarding_ends_everything_and_may_be_repeated(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    volumes = FakeVolumes()
    async with opened(tmp_path / "s", store, volumes=volumes) as files:
        await prepare(files, pushed.revision)
        await files.discard("r-1", keep_workspace=False)
        await files.discard("r-1", keep_workspace=False)
        await files.discard("never-there", keep_workspace=False)
    assert volumes.volumes == {}
    assert list((tmp_path / "s/runs").iterdir()) == []


# -- what goes wrong -----------------------------------------------------------------------------


async def test_a_revision_that_is_not_there_is_named(tmp_path: Path, store: Store) -> None:
    wanted = "sha256:" + "ab" * 32
    async with opened(tmp_path / "s", store) as files:
        fault = await refusal(files, wanted)
    assert fault.reason is Reason.REVISION_NOT_FOUND
    assert wanted in fault.detail


@pytest.mark.parametrize("text", ["abc", "../../x", "sha256:abc", "SHA256:" + "ab" * 32])
async def test_what_is_no_digest_is_no_revision(tmp_path: Path, store: Store, text: str) -> None:
    async with opened(tmp_path / "s", store) as files:
        assert (await refusal(files, text)).reason is Reason.REVISION_NOT_FOUND


async def test_a_snapshot_whose_description_is_spoilt_is_built_again(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        (lower(tmp_path / "s", pushed.tree).parent / "about").write_bytes(b"")
        cost = (await prepare(files, pushed.revision, "r-2")).cost
    assert (cost.way, cost.files_fetched) == ("farm", 0)


@pytest.mark.parametrize("damage", [b"wrong", b"", b"much longer than it was"])
async def test_a_damaged_blob_is_found_and_nothing_of_it_is_kept(
    tmp_path: Path, store: Store, project: Path, damage: bytes
) -> None:
    (project / "big").write_bytes(b"right")
    pushed = push(store, project)
    (bad,) = [path for path in stored_blobs(tmp_path) if path.read_bytes() == b"right"]
    bad.write_bytes(damage)
    async with opened(tmp_path / "s", store) as files:
        fault = await refusal(files, pushed.revision)
        assert fault.reason is Reason.FILES_CORRUPT
        assert bad.name in fault.detail
        assert (await files.stats()).snapshots == 0
        bad.write_bytes(b"right")
        assert (await prepare(files, pushed.revision)).cost.way == "farm"
    nothing_half_made(tmp_path / "s")


async def test_a_missing_blob_or_tree_is_a_corrupt_store(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    (blob, *_) = stored_blobs(tmp_path)
    blob.unlink()
    async with opened(tmp_path / "s", store) as files:
        fault = await refusal(files, pushed.revision)
        assert fault.reason is Reason.FILES_CORRUPT
        assert blob.name in fault.detail
    for tree in (tmp_path / "store/trees").rglob("*"):
        if tree.is_file():
            tree.unlink()
    async with opened(tmp_path / "s2", store) as files:
        fault = await refusal(files, pushed.revision)
        assert fault.reason is Reason.FILES_CORRUPT
        assert pushed.tree in fault.detail


async def test_a_tree_that_hashes_right_and_still_is_none_is_refused(
    tmp_path: Path, store: Store
) -> None:
    evil = b'{"entries":[{"kind":"link","name":"..","size":1,"target":"x"}]}'
    store.put_trees({digests.of_bytes(evil): evil})
    digest, data = revisions.encode(Revision(tree=digests.of_bytes(evil)))
    store.put_revision(digest, data)
    async with opened(tmp_path / "s", store) as files:
        assert (await refusal(files, digest)).reason is Reason.FILES_CORRUPT


async def test_a_store_that_is_away_is_told_as_such(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    (tmp_path / "store").rename(tmp_path / "away")
    async with opened(tmp_path / "s", store.url) as files:
        assert (await refusal(files, pushed.revision)).reason is Reason.STORE_UNAVAILABLE
        (tmp_path / "away").rename(tmp_path / "store")
        await prepare(files, pushed.revision)


async def test_a_store_that_dies_between_revision_and_blobs_is_told_as_such(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await files.read_revision(pushed.revision)
        (tmp_path / "store").rename(tmp_path / "away")
        assert (await refusal(files, pushed.revision)).reason is Reason.STORE_UNAVAILABLE


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "a:b", "a,b", "-x", "x" * 129, "a\\b", "a\0"])
async def test_a_run_id_that_could_lead_elsewhere_is_refused(
    tmp_path: Path, store: Store, run_id: str
) -> None:
    async with opened(tmp_path / "s", store) as files:
        assert (await refusal(files, "", run_id)).reason is Reason.WORKSPACE_FAILED


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b", "/".join(["x" * 200] * 6)])
async def test_a_state_directory_that_cannot_be_mounted_is_refused(
    tmp_path: Path, store: Store, name: str
) -> None:
    with pytest.raises(FaultError, match="state directory"):
        async with opened(tmp_path / name, store):
            pass


# -- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounts a filesystem")
    image, mounted = tmp_path / "disk.img", tmp_path / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", "4096", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


async def test_a_disk_without_space_is_told_and_left_clean_and_works_again_with_space(
    tmp_path: Path, small_disk: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"big/{n}": os.urandom(1 << 20) for n in range(20)})
    large = push(store, project)
    write_files(project, {f"big/{n}": "" for n in range(20)})
    small = push(store, project)
    async with opened(small_disk / "s", store) as files:
        fault = await refusal(files, large.revision)
        assert fault.reason is Reason.DISK_FULL
        assert (await prepare(files, small.revision, "r-2")).cost.way == "farm"
    nothing_half_made(small_disk / "s")


async def test_a_disk_that_is_fuller_than_it_said_is_told_and_nothing_half_made_is_left(
    tmp_path: Path, small_disk: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"f{n}": os.urandom(1 << 18) for n in range(20)})
    pushed = push(store, project)
    unchecked = -(1 << 40)
    async with opened(small_disk / "s", store, min_free_bytes=unchecked) as files:
        facts = os.statvfs(small_disk)
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (facts.f_bavail * facts.f_frsize - (1 << 20)))
        assert (await refusal(files, pushed.revision)).reason is Reason.DISK_FULL
        nothing_half_made(small_disk / "s")
        filler.unlink()
        prepared = await prepare(files, pushed.revision)
        assert contents(lower(small_disk / "s", prepared.workspace.tree)) == contents(project)
    nothing_half_made(small_disk / "s")


async def test_a_disk_without_inodes_is_told_as_full(
    tmp_path: Path, small_disk: Path, store: Store, project: Path
) -> None:
    write_files(project, {f"f{n}": str(n) for n in range(5000)})
    pushed = push(store, project)
    async with opened(small_disk / "s", store) as files:
        assert (await refusal(files, pushed.revision)).reason is Reason.DISK_FULL
    nothing_half_made(small_disk / "s")


async def test_what_has_to_stay_free_is_respected_and_the_numbers_are_told(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store, min_free_bytes=1 << 60) as files:
        fault = await refusal(files, pushed.revision)
    assert fault.reason is Reason.DISK_FULL
    assert fault.evidence["min_free_bytes"] == 1 << 60


# -- what a crash leaves -------------------------------------------------------------------------


async def test_what_a_crash_left_half_made_is_gone_after_the_next_start(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    write_files(tmp_path / "s/tmp", {"x/y/z": "half", "f": "half"})
    write_files(tmp_path / "s/trash", {"x/y/z": "thrown", "f": "thrown"})
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        for _ in range(200):
            if not list((tmp_path / "s/trash").iterdir()):
                break
            await asyncio.sleep(0.02)
    nothing_half_made(tmp_path / "s")
    assert list((tmp_path / "s/trash").iterdir()) == []


async def test_a_tree_or_revision_that_a_power_cut_has_torn_is_fetched_again(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
    for kind in ("trees-v1", "revisions-v1"):
        for path in (tmp_path / "s" / kind).rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    async with opened(tmp_path / "s", store) as files:
        assert (await files.read_revision(pushed.revision)).tree == pushed.tree
        assert (await prepare(files, pushed.revision, "r-2")).cost.way == "snapshot"


def test_the_place_of_a_blob_shows_its_mode() -> None:
    digest = trees.EMPTY_TREE
    assert BlobKey(digest, executable=True).place == BlobKey(digest, executable=False).place + "-x"

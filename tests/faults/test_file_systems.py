"""File systems that do not do everything: each run still gets its files, or a reason."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.files.client.pull import pull_revision
from executord.files.project_files import ProjectFiles
from executord.ports import Prepared
from tests.fakes.files import (
    FakeVolumes,
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)
from tests.harness.file_systems import file_system, overlay, unmount

RUN_USER = 1000
MEBIBYTE = 1 << 20
MOST_LINKS = 65_000  # of an inode on ext4
FILES = {"a.txt": "a", "twin": "a", "d/b.txt": "b", "d/e/c.txt": "c", "empty/": ""}


class Node:
    """A file cache over a store of its own, on whatever is mounted at `state`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.store = new_store(root / "store")
        self.volumes = FakeVolumes()

    @asynccontextmanager
    async def opened(self, mode: str = "auto") -> AsyncIterator[ProjectFiles]:
        async with opened(
            self.state, self.store, volumes=self.volumes, mode=mode, user=(RUN_USER, RUN_USER)
        ) as files:
            yield files

    def push(self, files: dict[str, bytes | str]) -> str:
        number = len(list(self.root.glob("project-*")))
        return push(self.store, write_files(self.root / f"project-{number}", files)).revision

    def directory(self, prepared: Prepared) -> Path:
        path = self.volumes.volumes[prepared.workspace.volume]["directory"]
        assert isinstance(path, Path)
        return path


@contextmanager
def two_disks(node: Node, *, runs: int = 16 * MEBIBYTE) -> Iterator[Path]:
    """The runs on one, everything else on the other."""
    with (
        file_system(node.state, "ext4", size=64 * MEBIBYTE),
        file_system(
            node.state / "runs", "ext4", size=runs, make=("-b", "4096", "-N", "8192")
        ) as path,
    ):
        yield path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def as_run(script: str, top: Path) -> None:
    subprocess.run(["/bin/sh", "-ec", script], cwd=top, user=RUN_USER, group=RUN_USER, check=True)


EDIT = "echo x > new; rm d/b.txt; mv a.txt moved; rmdir empty"
EDITED = {"twin": "a", "d/": "", "d/e/": "", "d/e/c.txt": "c", "new": "x\n", "moved": "a"}


async def whole_life(node: Node, files: ProjectFiles, run_id: str = "r-1") -> None:
    """Prepare, change, keep, discard; what was kept is what the run left."""
    prepared = await files.prepare(run_id, node.push(dict(FILES)), ignore_progress)
    volume = node.volumes.volumes[prepared.workspace.volume]
    if "directory" in volume:
        as_run(EDIT, volume["directory"])
    else:
        with overlay(
            node.root / "merged", lower=volume["lower"], upper=volume["upper"], work=volume["work"]
        ) as top:
            as_run(EDIT, top)
    kept = await files.keep(ended_run(run_id, prepared.workspace), ignore_progress)
    assert kept.result.head in ("moved", "conflict", "merged")
    target = node.root / f"pulled-{run_id}"
    pull_revision(node.store, kept.result.revision, target)
    assert contents(target) == EDITED
    await files.discard(run_id, keep_workspace=False)
    assert (await files.stats()).workspaces == 0


def why_not(files: ProjectFiles) -> dict[str, str]:
    return {verdict.mode: verdict.why for verdict in files.workspace_modes.verdicts}


# -- too many links --------------------------------------------------------------------------------


def link_to_the_limit(blob: Path, aside: Path, *, but: int = 0) -> None:
    aside.mkdir()
    for number in range(MOST_LINKS - blob.stat().st_nlink - but):
        os.link(blob, aside / str(number))


async def test_a_blob_with_all_links_that_ext4_allows_is_copied_for_the_next_run(
    node: Node,
) -> None:
    with file_system(node.state, "ext4", size=64 * MEBIBYTE):
        revision = node.push({"x": "x" * 5000})
        async with node.opened("hardlink") as files:
            await files.prepare("r-0", revision, ignore_progress)
            (blob,) = (node.state / "blobs-ro-v1").glob("*/*")
            link_to_the_limit(blob, node.state / "aside", but=1)
            last = await files.prepare("r-1", revision, ignore_progress)
            assert blob.stat().st_nlink == MOST_LINKS
            over = await files.prepare("r-2", revision, ignore_progress)
            assert (node.directory(last) / "x").stat().st_ino == blob.stat().st_ino
            copied = (node.directory(over) / "x").stat()
            assert copied.st_ino != blob.stat().st_ino
            assert (copied.st_uid, copied.st_mode & 0o777) == (os.geteuid(), 0o444)
            kept = await files.keep(ended_run("r-2", over.workspace), ignore_progress)
            assert kept.result.head == "unchanged"


async def test_a_snapshot_has_a_copy_of_a_blob_with_all_links_that_ext4_allows(
    node: Node,
) -> None:
    with file_system(node.state, "ext4", size=64 * MEBIBYTE):
        async with node.opened("overlay") as files:
            await files.prepare("r-0", node.push({"x": "x" * 5000}), ignore_progress)
            (blob,) = (node.state / "blobs-v1").glob("*/*")
            link_to_the_limit(blob, node.state / "aside")
            revision = node.push({"other/x": "x" * 5000, "y": "y"})
            prepared = await files.prepare("r-1", revision, ignore_progress)
            with overlay_of(node, prepared) as top:
                assert contents(top) == {"other/": "", "other/x": "x" * 5000, "y": "y"}
            assert blob.stat().st_nlink == MOST_LINKS


@contextmanager
def overlay_of(node: Node, prepared: Prepared) -> Iterator[Path]:
    volume = node.volumes.volumes[prepared.workspace.volume]
    with overlay(
        node.root / "merged", lower=volume["lower"], upper=volume["upper"], work=volume["work"]
    ) as top:
        yield top


# -- several file systems --------------------------------------------------------------------------


async def test_runs_on_a_file_system_of_their_own_get_overlays_all_the_same(node: Node) -> None:
    with two_disks(node) as runs:
        async with node.opened() as files:
            assert files.workspace_modes.chosen == "overlay"
            assert "Invalid cross-device link" in why_not(files)["reflink"]
            assert "Invalid cross-device link" in why_not(files)["hardlink"]
            await whole_life(node, files)
            await is_empty(runs / ".trash")


async def test_runs_on_a_file_system_of_their_own_can_have_copies(node: Node) -> None:
    with two_disks(node):
        async with node.opened("copy") as files:
            await whole_life(node, files)
        with pytest.raises(FaultError, match="Invalid cross-device link"):
            async with node.opened("hardlink"):
                pass


async def test_runs_that_have_come_back_to_the_caches_disk_get_links_again(node: Node) -> None:
    with file_system(node.state, "ext4", size=64 * MEBIBYTE):
        with file_system(node.state / "runs", "ext4", size=16 * MEBIBYTE):
            async with node.opened("copy"):
                pass
        async with node.opened("hardlink") as files:
            await whole_life(node, files)


async def test_what_a_killed_daemon_left_half_made_is_gone_after_the_next_start(
    node: Node,
) -> None:
    with two_disks(node) as runs:
        async with node.opened():
            pass
        half = write_files(runs / ".tmp" / "half", {"files/x": "x", "marks": ""})
        async with node.opened() as files:
            assert not half.exists()
            assert (await files.stats()).workspaces == 0
            await is_empty(runs / ".trash")


async def is_empty(directory: Path) -> None:
    """Or will be soon."""
    async with asyncio.timeout(10):
        while os.listdir(directory):  # noqa: ASYNC110, PTH208 - nobody tells
            await asyncio.sleep(0.02)


# -- what cannot be the upper layer ----------------------------------------------------------------


async def test_on_top_of_an_overlay_runs_get_links_and_it_is_said_why(node: Node) -> None:
    """An engine inside a container has such a disk."""
    for name in ("lower", "upper", "work"):
        (node.root / name).mkdir()
    with overlay(
        node.state, lower=[node.root / "lower"], upper=node.root / "upper", work=node.root / "work"
    ):
        async with node.opened() as files:
            assert files.workspace_modes.chosen == "hardlink"
            assert "cannot mount an overlay" in why_not(files)["overlay"]
            await whole_life(node, files)
        with pytest.raises(FaultError) as caught:
            async with node.opened("overlay"):
                pass
        detail = caught.value.fault.detail
        assert '`files.mode` is "overlay", but cannot mount an overlay' in detail
        assert "Put `node.state_dir` on ext4, XFS or btrfs" in detail
        async with node.opened("copy") as files:
            await whole_life(node, files, "r-2")


async def test_without_extended_attributes_runs_get_copies(node: Node) -> None:
    """What memory alone holds has none; and it does not say how much room there is."""
    (node.state / "runs").mkdir(parents=True)
    with memory(node.state / "runs"):
        async with node.opened() as files:
            assert files.workspace_modes.chosen == "copy"
            assert "through an overlay there" in why_not(files)["overlay"]
            await whole_life(node, files)


@contextmanager
def memory(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(path)], check=True)
    try:
        yield
    finally:
        unmount(path)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
async def test_files_share_their_blocks_with_the_cache_where_that_can_be(
    node: Node, kind: str
) -> None:
    size = 24 * MEBIBYTE
    with file_system(node.state, kind, size=512 * MEBIBYTE):
        revision = node.push({"large": os.urandom(size)})
        async with node.opened("reflink") as files:
            assert not why_not(files)["overlay"]
            await files.prepare("r-1", revision, ignore_progress)
            free = os.statvfs(node.state)
            second = await files.prepare("r-2", revision, ignore_progress)
            os.sync()
            taken = (free.f_bfree - os.statvfs(node.state).f_bfree) * free.f_frsize
            assert taken < size / 4
            top = node.directory(second)
            as_run("printf changed | dd of=large conv=notrunc bs=1 2>/dev/null", top)
            third = await files.prepare("r-3", revision, ignore_progress)
            original = (node.root / "project-0" / "large").read_bytes()
            assert (node.directory(third) / "large").read_bytes() == original
            kept = await files.keep(ended_run("r-2", second.workspace), ignore_progress)
            assert kept.result.changed == 1


# -- no room ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
async def test_without_inodes_a_run_is_told_so_and_nothing_half_made_is_left(
    node: Node, mode: str
) -> None:
    with file_system(node.state, "ext4", size=32 * MEBIBYTE, make=("-N", "1024")):
        free = os.statvfs(node.state).f_ffree - 100  # the cache takes more for itself
        revision = node.push({f"d/{number}": "same" for number in range(free)})
        async with node.opened(mode) as files:
            with pytest.raises(FaultError, match="inodes") as caught:
                await files.prepare("r-1", revision, ignore_progress)
            assert caught.value.fault.reason is Reason.DISK_FULL
            assert not (node.state / "runs" / "r-1").exists()
            await whole_life(node, files, "r-2")


async def test_a_copy_that_cannot_fit_is_refused_with_the_numbers(node: Node) -> None:
    with two_disks(node, runs=8 * MEBIBYTE):
        revision = node.push({"large": os.urandom(9 * MEBIBYTE)})
        async with node.opened("copy") as files:
            with pytest.raises(FaultError, match="bytes of their own") as caught:
                await files.prepare("r-1", revision, ignore_progress)
            assert caught.value.fault.reason is Reason.DISK_FULL
            assert caught.value.fault.evidence["needed_bytes"] == 9 * MEBIBYTE


async def test_a_disk_that_runs_full_in_the_middle_of_it_can_be_used_again_afterwards(
    node: Node,
) -> None:
    """Each file takes a block, which its size does not tell beforehand."""
    with two_disks(node, runs=8 * MEBIBYTE) as runs:
        revision = node.push({f"{number % 50}/{number}": f"{number}" for number in range(4000)})
        async with node.opened("copy") as files:
            with pytest.raises(FaultError, match="No space left") as caught:
                await files.prepare("r-1", revision, ignore_progress)
            assert caught.value.fault.reason is Reason.DISK_FULL
            assert not node.volumes.volumes
            await is_empty(runs / ".trash")
            await is_empty(runs / ".tmp")
            assert (await files.stats()).workspaces == 0
            await whole_life(node, files, "r-2")


async def test_on_a_full_disk_the_cache_opens_as_if_all_worked(node: Node) -> None:
    """There is no room to try anything, and runs that ended have to be cleaned up."""
    with file_system(node.state, "ext4", size=16 * MEBIBYTE):
        async with node.opened():
            pass
        filler = node.state / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        async with node.opened() as files:
            assert files.workspace_modes.chosen == "overlay"
            filler.unlink()
            await whole_life(node, files)

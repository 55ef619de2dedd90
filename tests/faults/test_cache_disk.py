"""A disk that is full, has no inodes left or fails, at every effect that the cache and the store
have on it: told as such, nothing half made, and all works once there is room.

`EXECUTORD_STEPS` sets at how many places an effect is refused; 0: at every one.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.files.client.push import Pushed
from executord.ports import VerifyReport
from tests.fakes.files import (
    contents,
    ignore_progress,
    new_store,
    opened,
    push,
    whiteout,
    write_files,
)
from tests.fakes.files_worker import Outcome, Worker
from tests.fakes.merged import shown
from tests.setup import apt

STEPS = int(os.environ.get("EXECUTORD_STEPS", "12"))
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, makes whiteouts"),
]


@dataclass(frozen=True)
class Scene:
    root: Path
    first: Pushed
    second: Pushed

    @property
    def state(self) -> Path:
        return self.root / "s"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def copy(self, folder: str, to: str) -> None:
        """With its hard links; nothing where there is nothing."""
        subprocess.run(["rm", "-rf", self.root / to], check=True)
        if (self.root / folder).exists():
            subprocess.run(["cp", "-a", self.root / folder, self.root / to], check=True)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    store = new_store(tmp_path / "store")
    project = write_files(
        tmp_path / "project", {"a.txt": "a", "twin": "a", "b/c.txt": "c", "empty/": ""}
    )
    (project / "link").symlink_to("a.txt")
    first = push(store, project)
    write_files(project, {"a.txt": "a2", "new/x": "x"})
    return Scene(tmp_path, first, push(store, project))


async def is_in_order(scene: Scene) -> None:
    """Runs get what they should, and nothing that is visible is half made."""
    async with opened(scene.state, f"file://{scene.store}") as files:
        workspace = (await files.prepare("r-9", scene.second.revision, ignore_progress)).workspace
        lowers = files._parts.snapshots.lowers(workspace.tree)
        assert shown(lowers) == contents(scene.root / "project")
        await files.discard("r-9", keep_workspace=False)
        reports = [step async for step in files.verify(repair=False)]
        assert isinstance(reports[-1], VerifyReport)
        assert reports[-1].is_good, reports[-1]
        assert list((scene.state / "tmp").iterdir()) == []


def places(effects: int) -> list[int]:
    if not STEPS or effects <= STEPS:
        return list(range(1, effects + 1))
    return sorted({1 + round(n * (effects - 1) / (STEPS - 1)) for n in range(STEPS)})


# -- each effect refused -------------------------------------------------------------------------


def _empty(_: Scene, __: Worker) -> None:
    """Begins without anything."""


def _first_is_here(scene: Scene, worker: Worker) -> None:
    worker.do("prepare", scene.state, scene.store, revision=scene.first.revision)
    worker.do("discard", scene.state, scene.store)


def _run_has_changed_files(scene: Scene, worker: Worker) -> None:
    worker.do("prepare", scene.state, scene.store, revision=scene.second.revision)
    upper = scene.state / "runs/r-1/upper"
    write_files(upper, {"a.txt": "changed", "fresh/x": "fx"})
    whiteout(upper / "b")


CASES: dict[str, tuple[str, Callable[[Scene, Worker], None]]] = {
    "insert and link": ("prepare", _empty),
    "layer": ("prepare", _first_is_here),
    "upload": ("keep", _run_has_changed_files),
}
FULL = {Reason.DISK_FULL, Reason.STORE_UNAVAILABLE, Reason.WORKSPACE_FAILED}


@pytest.mark.parametrize("name", CASES)
async def test_a_full_disk_at_any_effect_is_told_and_leaves_nothing_half_made(
    scene: Scene, worker: Worker, name: str
) -> None:
    operation, set_up = CASES[name]
    set_up(scene, worker)
    scene.copy("s", "s.saved")
    scene.copy("store", "store.saved")

    def refuse(at: int) -> Outcome:
        scene.copy("s.saved", "s")
        scene.copy("store.saved", "store")
        return worker.do(
            operation,
            scene.state,
            scene.store,
            revision=scene.second.revision,
            at=at,
            kill=False,
            again=True,
        )

    whole = refuse(0)
    assert whole.effects > 10
    told = 0
    for at in places(whole.effects):
        done = refuse(at)
        assert done.reason in {"", *FULL}, (at, done)
        assert done.tmp == [], at
        assert (done.revision, done.head) == (whole.revision, whole.head), at
        told += bool(done.reason)
    assert told > 0  # most are made good by a second try
    await is_in_order(scene)


# -- really full ---------------------------------------------------------------------------------


def remove(path: Path) -> None:
    subprocess.run(["rm", "-rf", path], check=True)


@contextmanager
def small_disk(root: Path, *options: str) -> Iterator[Path]:
    image, place = root / "disk.img", root / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", *options, image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("left_kib", [0, 64, 256, 600, 1000, 1400, 1800, 2200, 3000])
async def test_a_disk_that_fills_up_midway_is_told_and_works_when_there_is_room(
    tmp_path: Path, left_kib: int
) -> None:
    store = new_store(tmp_path / "store")
    project = write_files(tmp_path / "project", {f"f{n}": os.urandom(90_000) for n in range(20)})
    pushed = push(store, project)
    unchecked = -(1 << 40)  # as if the disk had said that there is room
    with small_disk(tmp_path) as disk:
        async with opened(disk / "s", store, min_free_bytes=unchecked) as files:
            await files.prepare("r-0", "", ignore_progress)
            filler = disk / "filler"
            facts = os.statvfs(disk)
            with contextlib.suppress(OSError):  # the last block may be needed for its own map
                filler.write_bytes(b"x" * (facts.f_bavail * facts.f_frsize - left_kib * 1024))
            os.sync()
            try:
                await files.prepare("r-1", pushed.revision, ignore_progress)
            except FaultError as error:
                assert error.fault.reason is Reason.DISK_FULL  # noqa: PT017 - it may also fit
                assert left_kib < 3000
            else:
                assert left_kib > 1400
            assert list((disk / "s/tmp").iterdir()) == []
            filler.unlink()
            workspace = (await files.prepare("r-2", pushed.revision, ignore_progress)).workspace
            assert shown(files._parts.snapshots.lowers(workspace.tree)) == contents(project)


@pytest.mark.parametrize("left", [0, 1, 3, 8, 20, 45, 120])
async def test_a_disk_that_runs_out_of_inodes_midway_is_told_and_works_when_there_are_some(
    tmp_path: Path, left: int
) -> None:
    store = new_store(tmp_path / "store")
    project = write_files(tmp_path / "project", {f"d{n}/f": str(n) for n in range(20)})
    pushed = push(store, project)
    with small_disk(tmp_path, "-N", "2048") as disk:
        async with opened(disk / "s", store) as files:
            await files.prepare("r-0", "", ignore_progress)
            fillers = disk / "fillers"
            fillers.mkdir()
            with contextlib.suppress(OSError):  # the cache itself may take one meanwhile
                for n in range(os.statvfs(disk).f_favail - left):
                    (fillers / str(n)).touch()
            try:
                await files.prepare("r-1", pushed.revision, ignore_progress)
            except FaultError as error:
                assert error.fault.reason is Reason.DISK_FULL  # noqa: PT017 - it may also fit
                assert left < 120
            else:
                assert left > 45
            assert list((disk / "s/tmp").iterdir()) == []
            remove(fillers)
            workspace = (await files.prepare("r-2", pushed.revision, ignore_progress)).workspace
            assert shown(files._parts.snapshots.lowers(workspace.tree)) == contents(project)


# -- system calls that fail ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def strace() -> str:
    if shutil.which("strace") is None:
        apt.install(["strace"])
    return "strace"


def prepare_while_failing(
    scene: Scene, strace: str, fault: str
) -> "subprocess.CompletedProcess[str]":
    order = {
        "operation": "prepare",
        "state": str(scene.state),
        "store": f"file://{scene.store}",
        "revision": scene.second.revision,
    }
    program = (
        "import asyncio, json, sys\n"
        "from tests.fakes.files_worker import Order, carry_out\n"
        "outcome = asyncio.run(carry_out(Order(**json.loads(sys.argv[1]))))\n"
        "print('told:', outcome.reason, outcome.tmp)\n"
    )
    return subprocess.run(
        [
            strace,
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            f"trace={fault.partition(':')[0]}",
            "-e",
            f"inject={fault}",
            sys.executable,
            "-c",
            program,
            json.dumps(order),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("calls", "error", "at"),
    [
        ("syncfs", "EIO", 1),
        ("syncfs", "EIO", 2),
        ("fsync,fdatasync", "EIO", 1),
        ("write,pwrite64", "ENOSPC", 3),
        ("write,pwrite64", "ENOSPC", 6),
        ("link,linkat", "EIO", 1),
        ("rename,renameat,renameat2", "EIO", 2),
        ("fchown,fchownat,lchown,chown,fchmod", "EIO", 2),
    ],
)
async def test_a_call_that_fails_leaves_nothing_that_is_visible_and_wrong(
    scene: Scene, strace: str, calls: str, error: str, at: int
) -> None:
    """Counted for each thread by itself: `at` is the first that comes so far in any of them."""
    done = await asyncio.to_thread(
        prepare_while_failing, scene, strace, f"{calls}:error={error}:when={at}"
    )
    told = done.returncode == 0 and "told:" in done.stdout
    assert told or "Errno" in done.stderr, done.stderr  # the caller's own output may fail too
    await is_in_order(scene)

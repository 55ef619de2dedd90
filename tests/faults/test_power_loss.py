"""The power goes while files are inserted, linked and uploaded: all that was not synced is lost.

The cache and the store lie on an ext4 of their own, whose journal commits when it is told to and
not by itself. A worker is killed right before one of its effects, and what is then in the backing
file of the loop device is the disk as a power cut would have left it: its copy is mounted, which
replays its journal. `EXECUTORD_STEPS` sets at how many places; 0: at every one.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from executord.core.reasons import FaultError
from executord.files.client.pull import pull_revision
from executord.files.client.push import Pushed
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import VerifyReport
from tests.fakes.files import contents, ignore_progress, new_store, project_files, push, write_files
from tests.fakes.files_worker import KILLED, Outcome, Worker
from tests.fakes.merged import shown

STEPS = int(os.environ.get("EXECUTORD_STEPS", "10"))
DISK_BYTES = 24 << 20
OPTIONS = "loop,commit=86400,noatime"
FILES = {f"d{n % 3}/f{n}": f"content {n} " * (n * 40 + 1) for n in range(12)} | {"empty/": ""}

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
]


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", OPTIONS, image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@dataclass(frozen=True)
class Machine:
    """`before` is the disk as each round begins. The disk is always mounted at the same place."""

    root: Path
    worker: Worker
    project: Path
    pushed: Pushed

    @property
    def place(self) -> Path:
        return self.root / "disk"

    @property
    def state(self) -> Path:
        return self.place / "s"

    @property
    def store(self) -> Path:
        return self.place / "store"

    def copy(self, image: str, to: str) -> Path:
        subprocess.run(["cp", "--sparse=always", self.root / image, self.root / to], check=True)
        return self.root / to

    def run_until_the_cut(self, operation: str, at: int, mutant: str) -> Outcome:
        """Leaves the disk as it was at that moment in `cut.img`."""
        disk = self.copy("before.img", "disk.img")
        with mounted(disk, self.place):
            done = self.worker.do(
                operation,
                self.state,
                self.store,
                revision=self.pushed.revision,
                project=str(self.project),
                at=at,
                mutant=mutant,
            )
            self.copy("disk.img", "cut.img")
        return done


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    before = tmp_path / "before.img"
    with before.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", before], check=True)
    project = write_files(tmp_path / "project", FILES)
    with mounted(before, tmp_path / "disk"):
        pushed = push(new_store(tmp_path / "disk/store"), project)
    with Worker() as worker:
        yield Machine(tmp_path, worker, project, pushed)


def places(effects: int) -> list[int]:
    """The last one, 0, is after everything was done."""
    if not STEPS or effects <= STEPS:
        return [*range(1, effects), 0]
    return [*sorted({1 + round(n * (effects - 2) / (STEPS - 1)) for n in range(STEPS)}), 0]


def after_a_start_of_the_machine(machine: Machine) -> ProjectFiles:
    files = project_files(machine.state, f"file://{machine.store}")
    files._parts.snapshots._boot = "another start of the machine"
    return files


def torn_blobs(machine: Machine) -> list[str]:
    """Blobs that are visible and are not what their names promise."""
    torn = []
    for path in (machine.state / "blobs-v1").rglob("*"):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest != path.name.removesuffix("-x"):
                torn.append(path.name)
    return torn


async def what_a_run_gets(machine: Machine) -> dict[str, str]:
    files = after_a_start_of_the_machine(machine)
    await files.open()
    try:
        revision = machine.pushed.revision
        workspace = (await files.prepare("r-9", revision, ignore_progress)).workspace
        found = shown(files._parts.snapshots.lowers(workspace.tree))
        await files.discard("r-9", keep_workspace=False)
        reports = [step async for step in files.verify(repair=False)]
        assert isinstance(reports[-1], VerifyReport)
        assert reports[-1].is_good, reports[-1]
        assert list((machine.state / "tmp").iterdir()) == []
        return found
    finally:
        await files.close()


async def cut_while_preparing(machine: Machine, *, mutant: str = "") -> int:
    """Gives how many visible blobs were torn."""
    torn = 0
    whole = machine.run_until_the_cut("prepare", 0, mutant)
    assert whole.effects > 25
    for at in places(whole.effects):
        done = machine.run_until_the_cut("prepare", at, mutant)
        assert done.status == (KILLED if at else 0)
        with mounted(machine.root / "cut.img", machine.place):
            torn += len(await asyncio.to_thread(torn_blobs, machine))
            assert await what_a_run_gets(machine) == contents(machine.project)
    return torn


async def test_blobs_that_are_visible_after_a_cut_are_whole_and_runs_get_the_right_files(
    machine: Machine,
) -> None:
    assert await cut_while_preparing(machine) == 0


async def test_the_suite_notices_blobs_that_are_renamed_before_they_are_synced(
    machine: Machine,
) -> None:
    assert await cut_while_preparing(machine, mutant="rename before sync") > 0


def changed_project(machine: Machine) -> dict[str, str]:
    write_files(machine.project, {"d1/new": "n" * 5000, "d0/f0": "changed", "d9/x": "x"})
    return contents(machine.project)


def what_the_head_names(machine: Machine) -> tuple[str, dict[str, str]]:
    """The project's newest revision, and its files. Raises FaultError where one is not there."""
    store = Store.open(f"file://{machine.store}", {})
    head = store.head("alice/churn")
    target = machine.root / "out"
    shutil.rmtree(target, ignore_errors=True)
    pull_revision(store, head, target)
    return head, contents(target)


def cut_while_pushing(machine: Machine, mutant: str = "") -> None:
    before = contents(machine.project)
    after = changed_project(machine)
    whole = machine.run_until_the_cut("push", 0, mutant)
    assert whole.head == "moved"
    for at in places(whole.effects):
        done = machine.run_until_the_cut("push", at, mutant)
        with mounted(machine.root / "cut.img", machine.place):
            head, found = what_the_head_names(machine)
            assert found == (before if head == machine.pushed.revision else after), at
            if done.status == 0:  # it was told that all is durable
                assert head == done.revision


def test_a_revision_that_was_reported_as_durable_is_there_after_a_cut(machine: Machine) -> None:
    cut_while_pushing(machine)


def test_the_suite_notices_a_store_that_does_not_sync(machine: Machine) -> None:
    with pytest.raises((AssertionError, FaultError)):
        cut_while_pushing(machine, "store that does not sync")

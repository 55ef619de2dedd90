"""kill -9 before each effect on the disk that inserting, linking, layering, flattening, evicting,
mending, discarding and uploading have.

Afterwards a fresh process finds everything that is visible whole and right, nothing left over, and
the same again gives what it would have given at once. `EXECUTORD_STEPS` sets at how many places,
evenly spread, each operation is killed; 0: at every one.
"""

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executord.core.reasons import FaultError
from executord.files.client.pull import pull_revision
from executord.files.client.push import Pushed
from executord.files.store.store import Store
from executord.ports import VerifyReport
from tests.fakes.files import contents, new_store, opened, push, whiteout, write_files
from tests.fakes.files_worker import KILLED, Outcome, Worker
from tests.fakes.merged import shown

STEPS = int(os.environ.get("EXECUTORD_STEPS", "6"))

FIRST = {"a.txt": "a", "twin": "a", "b/c.txt": "c", "b/gone": "g", "empty/": "", "d/e/f": "f"}
SECOND = {"a.txt": "a2", "twin": "a", "b/c.txt": "c", "new/x": "x", "d/e/f": "a"}

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Scene:
    """A store with two revisions of a project, and directories that hold their files."""

    root: Path
    worker: Worker
    first: Pushed
    second: Pushed

    @property
    def state(self) -> Path:
        return self.root / "s"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def do(self, operation: str, *, revision: str = "", at: int = 0, mutant: str = "") -> Outcome:
        return self.worker.do(
            operation,
            self.state,
            self.store,
            revision=revision or self.second.revision,
            project=str(self.root / "second"),
            at=at,
            mutant=mutant,
        )

    def save(self) -> None:
        """As it is now is how each round begins; hard links stay what they are."""
        for name in ("s", "store"):
            subprocess.run(["rm", "-rf", self.root / f"{name}.saved"], check=True)
            if (self.root / name).exists():
                subprocess.run(
                    ["cp", "-a", self.root / name, self.root / f"{name}.saved"], check=True
                )

    def restore(self) -> None:
        for name in ("s", "store"):
            subprocess.run(["rm", "-rf", self.root / name], check=True)
            if (self.root / f"{name}.saved").exists():
                subprocess.run(
                    ["cp", "-a", self.root / f"{name}.saved", self.root / name], check=True
                )


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def scene(tmp_path: Path, worker: Worker) -> Scene:
    store = new_store(tmp_path / "store")
    for name, files in (("first", FIRST), ("second", SECOND)):
        root = write_files(tmp_path / name, files)
        (root / "link").symlink_to("a.txt")
        (root / "b/c.txt").chmod(0o755)
    first = push(store, tmp_path / "first")
    return Scene(tmp_path, worker, first, push(store, tmp_path / "second"))


@dataclass(frozen=True)
class Case:
    """`set_up` makes what is there before; `after` looks at what is there once it is repeated."""

    operation: str
    set_up: Callable[[Scene], None]
    least: int
    revision: str = "second"


def _nothing(_: Scene) -> None:
    """Begins empty."""


def _first_is_here(scene: Scene) -> None:
    scene.do("prepare", revision=scene.first.revision)
    scene.do("discard")


def _layer_is_here(scene: Scene) -> None:
    _first_is_here(scene)
    assert scene.do("prepare").way == "layer"


def _two_are_here_unused(scene: Scene) -> None:
    _layer_is_here(scene)
    scene.do("discard")


def _blob_is_spoilt(scene: Scene) -> None:
    _layer_is_here(scene)
    for path in (scene.state / "blobs-v1").rglob("*"):
        if path.is_file() and path.read_bytes() == b"c":
            path.write_bytes(b"C")


def _run_has_changed_files(scene: Scene) -> None:
    scene.do("prepare", revision=scene.second.revision)
    upper = scene.state / "runs/r-1/upper"
    write_files(upper, {"a.txt": "changed", "fresh/x": "fx", "fresh/y": "fy"})
    whiteout(upper / "b")


CASES = {
    "insert and link": Case("prepare", _nothing, 25),
    "layer": Case("prepare", _first_is_here, 15),
    "flatten": Case("flatten", _layer_is_here, 8),
    "evict": Case("evict", _two_are_here_unused, 10),
    "mend": Case("prepare", _blob_is_spoilt, 15),
    "discard": Case("discard", _layer_is_here, 1),
    "upload": Case("keep", _run_has_changed_files, 25),
}


def places(effects: int, steps: int) -> list[int]:
    if not steps or effects <= steps:
        return list(range(1, effects + 1))
    return sorted({1 + round(n * (effects - 1) / (steps - 1)) for n in range(steps)})


async def look(scene: Scene) -> None:
    """A fresh daemon: all that is visible is right, and nothing is left of what was half done."""
    assert await asyncio.to_thread(uploaded_is_whole, scene)
    async with opened(scene.state, f"file://{scene.store}") as files:
        report = None
        async for step in files.verify(repair=False):
            report = step if isinstance(step, VerifyReport) else report
        assert report is not None
        assert not [each for each in report.objects if not is_planted(each.digest)]
        assert not report.skipped
        assert list((scene.state / "tmp").iterdir()) == []
        await asyncio.to_thread(files._parts.sweeper.empty_trash, threading.Event())
        assert list((scene.state / "trash").iterdir()) == []
        blobs = files._parts.blobs
        count = files._parts.sweeper.accounting.count
        await asyncio.to_thread(count, threading.Event(), hurry=True)
        assert (blobs.count, blobs.bytes) == blobs.count_all()
        for run in (scene.state / "runs").iterdir():
            assert files._parts.workspaces.lease(run.name) is not None, "a run half made"


def is_planted(digest: str) -> bool:
    """The one bad blob of the case that mends."""
    return digest == "sha256:2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6"


async def shows(scene: Scene, revision: Pushed, directory: str) -> None:
    """What a run would see is what was pushed."""
    async with opened(scene.state, f"file://{scene.store}") as files:
        prepared = await files.prepare("r-look", revision.revision, lambda _: None)
        lowers = files._parts.snapshots.lowers(prepared.workspace.tree)
        assert shown(lowers) == contents(scene.root / directory)
        await files.discard("r-look", keep_workspace=False)


def uploaded_is_whole(scene: Scene) -> bool:
    """Whatever the project's head names is there to its last byte."""
    store = Store.open(f"file://{scene.store}", {})
    head = store.head("alice/churn")
    target = scene.root / "out"
    pull_revision(store, head, target)
    found = contents(target)
    subprocess.run(["rm", "-rf", target], check=True)
    if head == scene.second.revision:
        return found == contents(scene.root / "second")
    changed = {**contents(scene.root / "second"), "a.txt": "changed"}
    changed |= {"fresh/": "", "fresh/x": "fx", "fresh/y": "fy"}
    return found == {name: text for name, text in changed.items() if not name.startswith("b/")}


async def kill_everywhere(
    scene: Scene, case: Case, *, mutant: str = "", steps: int = STEPS, begin: float = 0.0
) -> None:
    case.set_up(scene)
    scene.save()
    whole = scene.do(case.operation, mutant=mutant)
    assert whole.reason == ""
    assert whole.effects >= case.least
    for at in places(whole.effects, steps):
        if at < begin * whole.effects:
            continue
        scene.restore()
        done = scene.do(case.operation, at=at, mutant=mutant)
        if done.status != KILLED:
            # What the caretaker does beside it may fall on either side of the end.
            assert at > whole.effects * 0.9 - 3, "it took fewer steps than the first time"
            continue
        await look(scene)
        again = scene.do(case.operation)
        assert (again.status, again.reason) == (0, "")
        assert (again.revision, again.head) == (whole.revision, whole.head)
        await shows(scene, scene.second, "second")
        await look(scene)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes whiteouts")
@pytest.mark.parametrize("name", CASES)
async def test_killed_at_any_step_everything_is_whole_and_can_be_repeated(
    scene: Scene, name: str
) -> None:
    await kill_everywhere(scene, CASES[name])


@pytest.mark.skipif(os.geteuid() != 0, reason="makes whiteouts")
@pytest.mark.parametrize(
    ("name", "mutant"), [("insert and link", "publish in parts"), ("upload", "head before trees")]
)
async def test_the_suite_notices_a_planted_fault(scene: Scene, name: str, mutant: str) -> None:
    with pytest.raises((AssertionError, FaultError, OSError)):
        await kill_everywhere(scene, CASES[name], mutant=mutant, steps=0, begin=0.7)

"""kill -9 before every effect on the disk in turn: what is there is whole, and repeating mends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from executord.files.client.pull import pull_revision
from executord.files.store.store import Store
from tests.fakes.files import (
    contents,
    ignore_progress,
    new_store,
    opened,
    push,
    whiteout,
    write_files,
)

FILES = {"a.txt": "a", "twin": "a", "b/c.txt": "c", "empty/": ""}
ROOT = Path(__file__).parents[2]
KILLED = -9


def work(way: str, tmp_path: Path, revision: str, kill_at: int) -> dict[str, Any] | None:
    """None where it was killed."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fakes.files_worker",
            way,
            str(tmp_path / "s"),
            f"file://{tmp_path}/store",
            revision,
            str(kill_at),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == KILLED:
        return None
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.timeout(240)
def test_killed_anywhere_in_preparing_it_can_be_repeated_and_is_whole(tmp_path: Path) -> None:
    project = write_files(tmp_path / "project", FILES)
    (project / "link").symlink_to("a.txt")
    pushed = push(new_store(tmp_path / "store"), project)
    whole = work("prepare", tmp_path, pushed.revision, 0)
    assert whole is not None
    effects = int(whole["effects"])
    assert effects > 25
    for kill_at in range(1, effects + 1, 2):
        shutil.rmtree(tmp_path / "s")
        assert work("prepare", tmp_path, pushed.revision, kill_at) is None
        for snapshot in (tmp_path / "s/snapshots-v1").iterdir():
            assert contents(snapshot / "root") == contents(project), kill_at
    assert work("prepare", tmp_path, pushed.revision, 0) is not None
    (snapshot,) = (tmp_path / "s/snapshots-v1").iterdir()
    assert contents(snapshot / "root") == contents(project)
    assert [path.name for path in (tmp_path / "s/runs").iterdir()] == ["r-1"]


@pytest.mark.timeout(240)
async def test_killed_anywhere_in_finishing_it_can_be_repeated_with_the_same_revision(
    tmp_path: Path,
) -> None:
    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(tmp_path / "s", store) as files:
        await files.prepare("r-1", pushed.revision, ignore_progress)
    upper = tmp_path / "s/runs/r-1/upper"
    write_files(upper, {"a.txt": "changed", "new/x": "x", "new/y": "y"})
    whiteout(upper / "b")
    shutil.copytree(tmp_path / "store", tmp_path / "store-before")

    def restore() -> None:
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(tmp_path / "store-before", tmp_path / "store")

    assert work("keep", tmp_path, pushed.revision, 0) is not None
    restore()
    whole = work("keep", tmp_path, pushed.revision, 0)
    assert whole is not None
    effects = int(whole["effects"])
    assert effects > 25
    for kill_at in range(1, effects + 1, 3):
        restore()
        assert work("keep", tmp_path, pushed.revision, kill_at) is None
        head = Store.open(f"file://{tmp_path}/store", {}).head("alice/churn")
        assert head in (pushed.revision, whole["revision"]), kill_at
        if head == whole["revision"]:
            _whole(tmp_path, head)
        again = work("keep", tmp_path, pushed.revision, 0)
        assert again is not None
        assert (again["revision"], again["head"]) == (whole["revision"], "moved"), kill_at
        _whole(tmp_path, whole["revision"])


def _whole(tmp_path: Path, revision: str) -> None:
    target = tmp_path / "out"
    pull_revision(Store.open(f"file://{tmp_path}/store", {}), revision, target)
    assert contents(target) == {
        "a.txt": "changed",
        "empty/": "",
        "new/": "",
        "new/x": "x",
        "new/y": "y",
        "twin": "a",
    }
    shutil.rmtree(target)

"""kill -9 before every other effect of Finishing, on a head that has moved: one merge, the same."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from executord.files.client.pull import pull_revision
from executord.files.store.store import Store
from tests.fakes.files import (
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opened,
    push,
    whiteout,
    write_files,
)

ROOT = Path(__file__).parents[2]
FILES = {"a.txt": "a", "b/c.txt": "c", "gone": "g"}


@pytest.mark.timeout(240)
async def test_killed_anywhere_the_end_is_the_same_merge_and_no_second_one(tmp_path: Path) -> None:
    before = tmp_path / "before"
    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(tmp_path / "s", store) as files:
        for run_id in ("r-1", "r-2"):
            prepared = await files.prepare(run_id, pushed.revision, ignore_progress)
            write_files(tmp_path / "s/runs" / run_id / "upper", {f"{run_id}/x": run_id})
            if run_id == "r-1":
                first = await files.keep(ended_run(run_id, prepared.workspace), ignore_progress)
        whiteout(tmp_path / "s/runs/r-2/upper/gone")
    before.mkdir()
    for name in ("s", "store"):
        (tmp_path / name).rename(before / name)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.fakes.finishing_worker", str(tmp_path), "r-2", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    whole = lines[0]["first"]
    assert whole["effects"] > 15
    assert len(lines) - 1 >= whole["effects"] // 2
    assert (whole["head"], whole["added"], whole["deleted"]) == ("merged", 1, 1)
    line = [whole["head_revision"], first.result.revision, pushed.revision]
    for each in lines:
        again = each["again"]
        assert again["line"] == line, each["kill_at"]
        assert (again["revision"], again["head"]) == (whole["revision"], "merged"), each["kill_at"]
    pull_revision(Store.open(f"file://{tmp_path}/store", {}), line[0], tmp_path / "out")
    found = contents(tmp_path / "out")
    assert {name for name in found if not name.endswith("/")} == {
        "a.txt",
        "b/c.txt",
        "r-1/x",
        "r-2/x",
    }
    shutil.rmtree(before)

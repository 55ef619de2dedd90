"""What a run can do to its files beyond writing them: all of it stored, or named."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executord.core.run import Result, Run
from executord.files.client.pull import pull_revision
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import Kept
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

FILES = {"old/deep/a": "a" * 1000, "old/deep/b": "b" * 1000, "c": "c"}


@dataclass
class Bench:
    files: ProjectFiles
    store: Store
    root: Path
    run: Run
    upper: Path

    async def keep(self) -> Kept:
        return await self.files.keep(self.run, ignore_progress)

    def pulled(self, result: Result) -> dict[str, str]:
        pull_revision(self.store, result.revision, self.root / "out")
        return contents(self.root / "out")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(tmp_path / "s", store) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        run = ended_run("r-1", prepared.workspace)
        yield Bench(files, store, tmp_path, run, tmp_path / "s/runs/r-1/upper")


async def test_a_renamed_directory_is_a_copy_here_and_sends_nothing(bench: Bench) -> None:
    """`mv` of a lower directory copies, since the overlay refuses the rename."""
    write_files(bench.upper, {"new/deep/a": "a" * 1000, "new/deep/b": "b" * 1000})
    whiteout(bench.upper / "old")
    kept = await bench.keep()
    assert (kept.cost.files_sent, kept.result.bytes_sent) == (0, 0)
    assert (kept.result.added, kept.result.deleted) == (2, 2)
    files = bench.pulled(kept.result)
    assert files["new/deep/a"] == "a" * 1000
    assert not any(name.startswith("old") for name in files)


async def test_both_names_of_a_hard_link_are_stored_and_sent_once(bench: Bench) -> None:
    write_files(bench.upper, {"one": "linked"})
    os.link(bench.upper / "one", bench.upper / "two")
    kept = await bench.keep()
    assert (kept.result.added, kept.cost.files_sent) == (2, 1)
    files = bench.pulled(kept.result)
    assert (files["one"], files["two"]) == ("linked", "linked")


async def test_a_device_is_named_as_what_it_is(bench: Bench) -> None:
    if os.geteuid():
        pytest.skip("only root can make devices")
    os.mknod(bench.upper / "loop", 0o060600, os.makedev(7, 0))
    os.mknod(bench.upper / "zero", 0o020666, os.makedev(1, 5))
    result = (await bench.keep()).result
    assert sorted(result.skipped) == [
        "loop: a block device cannot be stored",
        "zero: a character device cannot be stored",
    ]


async def test_a_file_that_nobody_may_read_is_stored_all_the_same(bench: Bench) -> None:
    write_files(bench.upper, {"closed": "text"})
    (bench.upper / "closed").chmod(0)
    result = (await bench.keep()).result
    if os.geteuid():
        assert result.skipped == ("closed: cannot be read (Permission denied)",)
    else:
        assert result.added == 1


async def test_many_files_of_equal_content_are_noted_in_batches(bench: Bench) -> None:
    """More than a batch holds, and none of them new to the store after the first."""
    for n in range(5000):
        (bench.upper / f"f{n}").write_bytes(b"same")
    kept = await bench.keep()
    assert (kept.result.added, kept.cost.files_sent) == (5000, 1)


@pytest.mark.parametrize("mode", ["copy"])
async def test_a_sync_of_a_directory_that_holds_all_files_reads_it_while_it_stands_still(
    tmp_path: Path, mode: str
) -> None:
    from contextlib import asynccontextmanager  # noqa: PLC0415 - here alone

    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(tmp_path / "s", store, mode=mode) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        run = ended_run("r-1", prepared.workspace)
        top = files._parts.workspaces.changed("r-1").top
        write_files(top, {"c": "changed", "new": "n"})
        (top / "old/deep/a").unlink()

        @asynccontextmanager
        async def standing_still() -> AsyncIterator[None]:
            yield
            write_files(top, {"c": "later"})

        kept = await files.sync(
            run, at=5.0, standing_still=standing_still(), on_progress=ignore_progress
        )
        assert kept.cost.way == "read"
        result = kept.result
        assert (result.added, result.changed, result.deleted) == (1, 1, 1)
        pull_revision(store, result.revision, tmp_path / "out")
        assert contents(tmp_path / "out")["c"] == "changed"
        end = (await files.keep(run, ignore_progress)).result
        assert store.revision(end.revision).parent == result.revision

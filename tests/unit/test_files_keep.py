"""Finishing: what a run changed, read from its upper directory, becomes a revision."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.core.run import Result, Run
from executord.files.client.pull import pull_revision
from executord.files.client.push import Pushed
from executord.files.faults import CancelledWorkError
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.files.workspace.intake import until
from executord.ports import Kept
from tests.fakes.files import (
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opaque,
    opened,
    push,
    whiteout,
    write_files,
)

FILES = {
    "a.txt": "a",
    "b/c.txt": "c",
    "b/d/e": "e",
    "empty/": "",
    ".dominoignore": "*.tmp\n/out/\n",
}


@dataclass
class Bench:
    """One prepared run on a pushed project; tests write into `upper` what the run would."""

    files: ProjectFiles
    store: Store
    root: Path
    pushed: Pushed
    run: Run
    upper: Path

    async def keep(self, run: Run | None = None) -> Result:
        return (await self.kept(run)).result

    async def kept(self, run: Run | None = None) -> Kept:
        return await self.files.keep(run or self.run, ignore_progress)

    async def another_run(self, run_id: str, revision: str) -> tuple[Run, Path]:
        prepared = await self.files.prepare(run_id, revision, ignore_progress)
        return ended_run(run_id, prepared.workspace), self.root / "s/runs" / run_id / "upper"

    def pulled(self, revision: str) -> dict[str, str]:
        target = self.root / f"out-{revision[-8:]}"
        if not target.exists():
            pull_revision(self.store, revision, target)
        return contents(target)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(tmp_path / "s", store) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        run = ended_run("r-1", prepared.workspace)
        yield Bench(files, store, tmp_path, pushed, run, tmp_path / "s/runs/r-1/upper")


# -- what changed --------------------------------------------------------------------------------


async def test_new_and_changed_and_deleted_files_become_a_revision_on_the_base(
    bench: Bench,
) -> None:
    write_files(bench.upper, {"a.txt": "changed", "b/new": "new", "results/x/y": "y"})
    whiteout(bench.upper / "b/c.txt")
    kept = await bench.kept()
    result = kept.result
    assert (result.head, result.added, result.changed, result.deleted) == ("moved", 2, 1, 1)
    assert (kept.cost.files_sent, kept.cost.bytes_sent, result.bytes_sent) == (3, 11, 11)
    revision = bench.store.revision(result.revision)
    assert (revision.parent, revision.author, revision.run) == (
        bench.pushed.revision,
        "alice",
        "r-1",
    )
    assert revision.time == 1000.0
    assert bench.store.head("alice/churn") == result.revision
    assert bench.store.run_revision("alice/churn", "r-1") == result.revision
    expected = {**contents(bench.root / "project"), "a.txt": "changed", "b/new": "new"}
    expected |= {"results/": "", "results/x/": "", "results/x/y": "y"}
    del expected["b/c.txt"]
    assert bench.pulled(result.revision) == expected


async def test_a_directory_deleted_and_made_again_has_only_its_new_files(bench: Bench) -> None:
    opaque(bench.upper / "b")
    write_files(bench.upper, {"b/only": "only"})
    result = await bench.keep()
    assert (result.added, result.deleted) == (1, 2)
    names = [name for name in bench.pulled(result.revision) if name.startswith("b")]
    assert names == ["b/", "b/only"]


async def test_a_deleted_directory_takes_all_below_it(bench: Bench) -> None:
    whiteout(bench.upper / "b")
    result = await bench.keep()
    assert (result.added, result.changed, result.deleted) == (0, 0, 2)
    assert "b/" not in bench.pulled(result.revision)


async def test_a_file_where_a_directory_was_and_the_other_way_round(bench: Bench) -> None:
    write_files(bench.upper, {"b": "now a file"})
    opaque(bench.upper / "a.txt")
    write_files(bench.upper, {"a.txt/inside": "x"})
    result = await bench.keep()
    files = bench.pulled(result.revision)
    assert files["b"] == "now a file"
    assert files["a.txt/inside"] == "x"
    assert (result.added, result.changed, result.deleted) == (2, 0, 3)


async def test_a_link_where_a_directory_was_is_a_link(bench: Bench) -> None:
    (bench.upper / "b").symlink_to("/etc")
    result = await bench.keep()
    assert bench.pulled(result.revision)["b"] == "-> /etc"


async def test_empty_directories_are_kept(bench: Bench) -> None:
    write_files(bench.upper, {"new/": ""})
    result = await bench.keep()
    assert (result.head, result.added) == ("moved", 1)
    assert "new/" in bench.pulled(result.revision)


async def test_the_executable_bit_alone_is_a_change_and_sends_nothing(bench: Bench) -> None:
    write_files(bench.upper, {"a.txt": "a"})
    (bench.upper / "a.txt").chmod(0o755)
    kept = await bench.kept()
    assert (kept.result.changed, kept.cost.files_sent) == (1, 0)
    await bench.another_run("r-2", kept.result.revision)
    tree = bench.store.revision(kept.result.revision).tree.removeprefix("sha256:")
    assert (bench.root / "s/snapshots-v1" / tree / "root/a.txt").stat().st_mode & 0o111


async def test_files_that_were_only_touched_change_nothing(bench: Bench) -> None:
    write_files(bench.upper, {"a.txt": "a", "b/d/e": "e", "empty/": ""})
    result = await bench.keep()
    assert result == Result(head="unchanged")
    assert bench.store.head("alice/churn") == bench.pushed.revision
    assert bench.store.run_revision("alice/churn", "r-1") == ""


async def test_content_that_the_store_has_already_is_not_sent(bench: Bench) -> None:
    write_files(bench.upper, {"copy-of-c": "c", "again/copy": "c"})
    kept = await bench.kept()
    assert (kept.result.added, kept.cost.files_sent) == (2, 0)


async def test_what_is_ignored_is_neither_sent_back_nor_deleted(bench: Bench) -> None:
    write_files(bench.upper, {"x.tmp": "x", "b/y.tmp": "y", "out/z": "z", "fine": "f"})
    result = await bench.keep()
    assert result.added == 1
    files = bench.pulled(result.revision)
    assert "fine" in files
    assert not any(name.endswith(".tmp") or name.startswith("out") for name in files)


async def test_the_patterns_that_the_run_wrote_count(bench: Bench) -> None:
    write_files(
        bench.upper, {".dominoignore": "secret*\n*a*a*a*a*b\n", "x.tmp": "x", "secret": "s"}
    )
    result = await bench.keep()
    files = bench.pulled(result.revision)
    assert "x.tmp" in files
    assert "secret" not in files
    assert result.skipped == (".dominoignore: line 2: too many wildcards, not used",)


async def test_deleting_what_is_ignored_changes_nothing(tmp_path: Path, bench: Bench) -> None:
    write_files(tmp_path / "project", {".dominoignore": "data/\nx.log\n"})
    write_files(tmp_path / "project", {"data/set.csv": "1"})
    (tmp_path / "project/.dominoignore").unlink()
    base = push(bench.store, tmp_path / "project")
    run, upper = await bench.another_run("r-2", base.revision)
    write_files(upper, {".dominoignore": "data/\n"})
    whiteout(upper / "data")
    result = await bench.keep(run)
    assert (result.added, result.deleted) == (1, 0)
    assert "data/set.csv" in bench.pulled(result.revision)


async def test_a_run_without_files_keeps_what_it_made(bench: Bench) -> None:
    run, upper = await bench.another_run("r-2", "")
    write_files(upper, {"made": "made"})
    first = await bench.keep(replace(run, assignment=replace(run.assignment, project="new/one")))
    assert first.head == "moved"
    assert bench.store.revision(first.revision).parent == ""
    assert bench.store.head("new/one") == first.revision


async def test_a_run_without_a_project_has_its_revision_under_its_own_name(bench: Bench) -> None:
    write_files(bench.upper, {"made": "made"})
    result = await bench.keep(
        replace(bench.run, assignment=replace(bench.run.assignment, project=""))
    )
    assert (result.head, bool(result.revision)) == ("unchanged", True)
    assert bench.store.run_revision("", "r-1") == result.revision


# -- traps ---------------------------------------------------------------------------------------


async def test_special_files_are_skipped_and_named(bench: Bench) -> None:
    os.mkfifo(bench.upper / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bench.upper / "sock"))
    if os.geteuid() == 0:
        os.mknod(bench.upper / "null", 0o020666, os.makedev(1, 3))
        os.mknod(bench.upper / "a.txt", 0o060666, os.makedev(7, 99))
    result = await bench.keep()
    named = {line.split(":")[0] for line in result.skipped}
    assert {"pipe", "sock"} <= named
    if os.geteuid() == 0:
        assert named == {"pipe", "sock", "null", "a.txt"}
        assert result.deleted == 1


async def test_links_are_never_followed(bench: Bench, tmp_path: Path) -> None:
    write_files(tmp_path / "outside", {"secret": "secret"})
    (bench.upper / "dir").symlink_to(tmp_path / "outside")
    (bench.upper / "file").symlink_to(tmp_path / "outside/secret")
    (bench.upper / "loop").symlink_to("loop")
    (bench.upper / "dominostats.json").symlink_to(tmp_path / "outside/secret")
    (bench.upper / ".dominoignore").symlink_to("/dev/zero")
    result = await bench.keep()
    files = bench.pulled(result.revision)
    assert files["file"] == f"-> {tmp_path}/outside/secret"
    assert "secret" not in files.values()
    assert result.diagnostics is None


async def test_a_directory_that_becomes_a_link_again_and_again_leads_nowhere(
    bench: Bench, tmp_path: Path
) -> None:
    """What is listed while the run lives: whatever it does, nothing outside is read."""
    outside = write_files(tmp_path / "outside", {f"secret-{n}": "s" for n in range(50)})
    write_files(bench.upper, {"trap/x": "x"})

    def swap() -> None:
        trap, aside = bench.upper / "trap", bench.upper / "aside"
        for _ in range(3000):
            trap.rename(aside)
            trap.symlink_to(outside)
            trap.unlink()
            aside.rename(trap)

    swapping = asyncio.create_task(asyncio.to_thread(swap))
    seen: set[str] = set()
    looked = 0
    while not swapping.done():
        with contextlib.suppress(FaultError):  # it moves too quickly to be listed
            seen |= {change.path for change in await bench.files.changes(bench.run)}
        looked += 1
    await swapping
    assert looked > 20
    assert not any("secret" in path for path in seen)


async def test_a_path_of_three_hundred_directories_is_kept_and_one_of_six_hundred_named(
    bench: Bench,
) -> None:
    for depth, letter in ((300, "a"), (600, "b")):
        fd = os.open(bench.upper, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(letter * 30, dir_fd=fd)
            below = os.open(letter * 30, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
    result = await bench.keep()
    assert len(result.skipped) == 1
    assert "deeper than 512" in result.skipped[0]
    run, _ = await bench.another_run("r-2", result.revision)
    assert run.workspace is not None
    await bench.files.discard("r-1", keep_workspace=False)
    for _ in range(300):
        if not list((bench.root / "s/trash").iterdir()):
            break
        await asyncio.sleep(0.02)
    assert list((bench.root / "s/trash").iterdir()) == []


async def test_names_that_are_not_utf8_are_kept(bench: Bench) -> None:
    (bench.upper / os.fsdecode(b"caf\xe9\n\x01")).write_text("x")
    result = await bench.keep()
    assert bench.pulled(result.revision)[os.fsdecode(b"caf\xe9\n\x01")] == "x"


async def test_a_large_sparse_file_takes_no_more_room_than_it_had(bench: Bench) -> None:
    with (bench.upper / "sparse").open("wb") as file:
        file.seek(300 << 20)
        file.write(b"end")
    result = await bench.keep()
    assert result.added == 1
    blobs = [path for path in (bench.root / "s/blobs-v1").rglob("*") if path.is_file()]
    largest = max(blobs, key=lambda path: path.stat().st_size)
    assert largest.stat().st_size == (300 << 20) + 3
    assert largest.stat().st_blocks * 512 < 1 << 20


async def test_a_file_beyond_all_measure_is_named_and_not_read(bench: Bench) -> None:
    with (bench.upper / "huge").open("wb") as file:
        file.truncate(1 << 40)
    result = await bench.keep()
    assert result.head == "unchanged"
    assert result.skipped == (f"huge: larger than {256 << 30} bytes",)


async def test_at_most_a_hundred_skipped_files_are_named(bench: Bench) -> None:
    for n in range(250):
        os.mkfifo(bench.upper / f"p{n}")
    result = await bench.keep()
    assert len(result.skipped) == 100
    assert result.skipped[-1] == "… and 151 more"


# -- diagnostics ---------------------------------------------------------------------------------


async def test_statistics_that_the_run_wrote_are_reported(bench: Bench) -> None:
    write_files(bench.upper, {"dominostats.json": '{"accuracy": 0.93, "n": [1, 2]}'})
    assert (await bench.keep()).diagnostics == {"accuracy": 0.93, "n": [1, 2]}


async def test_statistics_of_an_earlier_run_are_not_this_ones(bench: Bench) -> None:
    write_files(bench.upper, {"dominostats.json": '{"accuracy": 0.93}'})
    first = await bench.keep()
    run, upper = await bench.another_run("r-2", first.revision)
    write_files(upper, {"x": "x"})
    assert (await bench.keep(run)).diagnostics is None


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '"x"', "null", "[" * 60_000, '{"a":' * 5000, "\xff", '{"a": NaN}']
)
async def test_statistics_that_are_no_json_object_are_left_alone(bench: Bench, text: str) -> None:
    write_files(bench.upper, {"dominostats.json": text})
    result = await bench.keep()
    assert result.diagnostics is None
    assert result.added == 1
    assert result.skipped == ("dominostats.json: not read, it is no JSON object",)


async def test_statistics_that_are_too_large_are_left_alone(bench: Bench) -> None:
    write_files(bench.upper, {"dominostats.json": '{"a": "' + "x" * 70_000 + '"}'})
    result = await bench.keep()
    assert result.diagnostics is None
    assert "larger than 65536" in result.skipped[0]


# -- heads, repeating, a store that is away --------------------------------------------------------


async def test_of_two_runs_from_one_base_the_second_is_kept_beside_the_head(bench: Bench) -> None:
    second, upper = await bench.another_run("r-2", bench.pushed.revision)
    write_files(bench.upper, {"a.txt": "first"})
    write_files(upper, {"a.txt": "second"})
    one, two = await bench.keep(), await bench.keep(second)
    assert (one.head, two.head) == ("moved", "conflict")
    assert bench.store.head("alice/churn") == one.revision
    assert bench.store.run_revision("alice/churn", "r-2") == two.revision
    assert bench.pulled(two.revision)["a.txt"] == "second"


async def test_keeping_again_gives_the_same_and_sends_nothing(bench: Bench) -> None:
    write_files(bench.upper, {"a.txt": "changed"})
    first, again = await bench.kept(), await bench.kept()
    assert (again.result.revision, again.result.head) == (first.result.revision, "moved")
    assert again.cost.files_sent == 0


async def test_keeping_again_after_somebody_built_upon_it_is_no_conflict(bench: Bench) -> None:
    write_files(bench.upper, {"a.txt": "changed"})
    first = await bench.keep()
    run, upper = await bench.another_run("r-2", first.revision)
    write_files(upper, {"b/more": "more"})
    assert (await bench.keep(run)).head == "moved"
    assert await bench.keep() == replace(first, bytes_sent=0)


async def test_a_store_that_is_away_is_told_and_keeping_works_once_it_is_back(
    bench: Bench,
) -> None:
    write_files(bench.upper, {"a.txt": "changed"})
    (bench.root / "store").rename(bench.root / "away")
    with pytest.raises(FaultError) as caught:
        await bench.keep()
    assert caught.value.fault.reason is Reason.STORE_UNAVAILABLE
    await bench.files.discard("r-1", keep_workspace=True)
    assert (bench.upper / "a.txt").exists()
    (bench.root / "away").rename(bench.root / "store")
    assert (await bench.keep()).head == "moved"


async def test_a_kept_workspace_survives_a_restart_and_pins_nothing(bench: Bench) -> None:
    write_files(bench.upper, {"a.txt": "changed"})
    await bench.files.discard("r-1", keep_workspace=True)
    await bench.files.close()
    async with opened(bench.root / "s", bench.store) as files:
        assert (await files.stats()).workspaces == 1
        assert [entry.pinned_by for entry in await files.entries()] == [()]
        await files.prune(dry_run=False)
        kept = await files.keep(bench.run, ignore_progress)
        assert kept.result.head == "moved"


async def test_a_cancelled_keep_leaves_the_run_as_it_was(bench: Bench) -> None:
    write_files(bench.upper, {f"f{n}": str(n) for n in range(3000)})
    task = asyncio.create_task(bench.kept())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.store.head("alice/churn") == bench.pushed.revision
    assert (await bench.keep()).added == 3000


# -- while the run lives, and after ----------------------------------------------------------------


async def test_changes_of_a_live_run_are_listed_by_path(bench: Bench) -> None:
    write_files(bench.upper, {"a.txt": "b", "b/d/e": "e", "new": "12"})
    whiteout(bench.upper / "b/c.txt")
    found = [(c.kind, c.path, c.size_bytes) for c in await bench.files.changes(bench.run)]
    assert found == [("changed", "a.txt", 1), ("deleted", "b/c.txt", 0), ("added", "new", 2)]


async def test_changes_of_an_ended_run_are_those_of_its_revision(bench: Bench) -> None:
    write_files(bench.upper, {"new": "12"})
    run = replace(bench.run, result=await bench.keep())
    await bench.files.discard("r-1", keep_workspace=False)
    found = [(change.kind, change.path) for change in await bench.files.changes(run)]
    assert found == [("added", "new")]


async def test_a_run_that_left_nothing_has_no_changes(bench: Bench) -> None:
    assert await bench.files.changes(replace(bench.run, workspace=None)) == ()
    await bench.files.discard("r-1", keep_workspace=False)
    assert await bench.files.changes(bench.run) == ()


async def test_keeping_a_workspace_that_is_gone_is_told_as_such(bench: Bench) -> None:
    await bench.files.discard("r-1", keep_workspace=False)
    with pytest.raises(FaultError) as caught:
        await bench.keep()
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED


def test_a_stop_is_heard_in_the_middle_of_one_file() -> None:
    cancelled = threading.Event()
    chunks = until(cancelled, iter([b"first", b"second"]))
    assert next(chunks) == b"first"
    cancelled.set()
    with pytest.raises(CancelledWorkError):
        next(chunks)

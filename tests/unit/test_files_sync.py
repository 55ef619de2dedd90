"""Files stored in the middle of a run: a consistent copy, a marked revision, and an end upon it."""

import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from executord.core.reasons import FaultError
from executord.core.run import Result, Run
from executord.core.states import State
from executord.files.client.pull import pull_revision
from executord.files.faults import CancelledWorkError
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.files.workspace.changed import UpperDirectory
from executord.files.workspace.live_copy import copy_changes
from executord.ports import Kept
from tests.fakes.files import (
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opaque,
    opened,
    push,
    write_files,
)

PROJECT = "alice/churn"
FILES = {"a.txt": "a", "b/c": "c", "b/d": "d"}


@dataclass
class Live:
    files: ProjectFiles
    store: Store
    root: Path
    base: str
    run: Run
    upper: Path

    async def sync(self, at: float = 50.0) -> Result:
        return (await self.synced(at)).result

    async def synced(self, at: float = 50.0) -> Kept:
        return await self.files.sync(
            self.run, at=at, standing_still=nullcontext(), on_progress=ignore_progress
        )

    async def end(self) -> Result:
        return (await self.files.keep(self.run, ignore_progress)).result

    async def other_run(self, files: dict[str, str]) -> Result:
        prepared = await self.files.prepare("r-other", self.base, ignore_progress)
        write_files(self.root / "s/runs/r-other/upper", files)
        run = ended_run("r-other", prepared.workspace)
        return (await self.files.keep(run, ignore_progress)).result

    def pulled(self, revision: str) -> dict[str, str]:
        target = self.root / "out"
        shutil.rmtree(target, ignore_errors=True)
        pull_revision(self.store, revision, target)
        return contents(target)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(tmp_path / "s", store) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        run = replace(ended_run("r-1", prepared.workspace), state=State.RUNNING)
        yield Live(files, store, tmp_path, pushed.revision, run, tmp_path / "s/runs/r-1/upper")


async def test_a_sync_is_a_marked_revision_and_the_end_builds_upon_it(live: Live) -> None:
    write_files(live.upper, {"a.txt": "early", "new": "n"})
    sync = await live.sync(at=77.0)
    assert (sync.head, sync.added, sync.changed) == ("moved", 1, 1)
    middle = live.store.revision(sync.revision)
    assert (middle.parent, middle.mid_run, middle.time, middle.run) == (
        live.base,
        True,
        77.0,
        "r-1",
    )
    assert live.store.head(PROJECT) == sync.revision
    write_files(live.upper, {"a.txt": "late"})
    end = await live.end()
    last = live.store.revision(end.revision)
    assert (end.head, last.parent, last.mid_run) == ("moved", sync.revision, False)
    assert (end.added, end.changed) == (1, 1)
    assert live.pulled(end.revision)["a.txt"] == "late"


async def test_a_sync_of_nothing_makes_no_revision(live: Live) -> None:
    assert await live.sync() == Result(head="unchanged")
    write_files(live.upper, {"new": "n"})
    first = await live.sync()
    again = await live.sync(at=99.0)
    assert (again.revision, again.head) == (first.revision, "moved")
    assert live.store.head(PROJECT) == first.revision


async def test_an_end_without_changes_since_the_sync_is_the_syncs_revision(live: Live) -> None:
    write_files(live.upper, {"new": "n"})
    sync = await live.sync()
    end = await live.end()
    assert (end.revision, end.head, end.added) == (sync.revision, "moved", 1)
    assert await live.end() == end


async def test_what_is_taken_back_after_a_sync_is_taken_back_in_the_store(live: Live) -> None:
    write_files(live.upper, {"new": "n"})
    await live.sync()
    (live.upper / "new").unlink()
    end = await live.end()
    assert (end.head, end.added) == ("moved", 0)
    assert live.pulled(live.store.head(PROJECT)) == contents(live.root / "project")


async def test_syncs_and_others_are_merged_and_the_end_is_in_no_conflict_with_itself(
    live: Live,
) -> None:
    other = await live.other_run({"other": "o"})
    assert other.head == "moved"
    write_files(live.upper, {"a.txt": "1"})
    first = await live.sync()
    assert first.head == "merged"
    write_files(live.upper, {"a.txt": "2", "more": "m"})
    second = await live.sync()
    assert second.head == "merged"
    write_files(live.upper, {"a.txt": "3"})
    end = await live.end()
    assert (end.head, end.conflicts) == ("merged", ())
    files = live.pulled(end.head_revision)
    assert (files["a.txt"], files["more"], files["other"]) == ("3", "m", "o")
    line = [live.store.revision(end.revision).parent, live.store.revision(second.revision).parent]
    assert line == [second.revision, first.revision]


async def test_a_sync_in_conflict_leaves_the_head_and_the_end_says_so_too(live: Live) -> None:
    other = await live.other_run({"a.txt": "theirs"})
    write_files(live.upper, {"a.txt": "ours"})
    sync = await live.sync()
    assert (sync.head, sync.conflicts) == ("conflict", ("a.txt",))
    write_files(live.upper, {"new": "n"})
    end = await live.end()
    assert (end.head, end.conflicts) == ("conflict", ("a.txt",))
    assert live.store.head(PROJECT) == other.revision
    assert live.store.run_revision(PROJECT, "r-1") == end.revision


async def test_a_sync_killed_before_the_head_moved_loses_nothing_at_the_end(live: Live) -> None:
    """The revision is in the store and noted, and nothing points to it yet."""
    write_files(live.upper, {"a.txt": "1", "kept": "k"})
    store = live.files._parts.store

    class Killed(Store):
        def move_head(self, *_: str) -> bool:
            raise KeyboardInterrupt

    plain, store.__class__ = store.__class__, Killed
    with pytest.raises(KeyboardInterrupt):
        await live.sync()
    store.__class__ = plain
    assert live.store.head(PROJECT) == live.base
    write_files(live.upper, {"a.txt": "2"})
    end = await live.end()
    assert end.head == "moved" or end.head == "merged"  # noqa: PLR1714 - a sentence
    files = live.pulled(live.store.head(PROJECT))
    assert (files["a.txt"], files["kept"]) == ("2", "k")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "torn": lambda data: data[:40],
    "no line": lambda _: b'{"tree":"","line":[]}',
    "one digit": lambda data: data.replace(data[20:21], b"0" if data[20:21] != b"0" else b"1", 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("others", [False, True])
async def test_an_end_whose_note_of_syncs_is_damaged_builds_upon_the_last_one_all_the_same(
    live: Live, damage: str, others: bool
) -> None:
    if others:
        await live.other_run({"other": "o"})
    write_files(live.upper, {"a.txt": "1", "kept": "k"})
    await live.sync()
    write_files(live.upper, {"a.txt": "2"})
    second = await live.sync()
    note = live.root / "s/runs/r-1/stored.json"
    note.write_bytes(DAMAGES[damage](note.read_bytes()))
    write_files(live.upper, {"a.txt": "3"})
    end = await live.end()
    assert (end.head, end.conflicts) == ("merged" if others else "moved", ())
    assert live.store.revision(end.revision).parent == second.revision
    files = live.pulled(live.store.head(PROJECT))
    assert (files["a.txt"], files["kept"], "other" in files) == ("3", "k", others)


async def test_a_damaged_note_of_what_nothing_points_to_yet_loses_no_file(live: Live) -> None:
    write_files(live.upper, {"a.txt": "1", "kept": "k"})
    (live.root / "s/runs/r-1/stored.json").write_bytes(b"{")
    end = await live.end()
    assert (end.head, live.store.revision(end.revision).parent) == ("moved", live.base)
    assert live.pulled(end.revision)["kept"] == "k"


async def test_what_an_earlier_run_of_the_same_name_has_left_is_not_built_upon(live: Live) -> None:
    write_files(live.upper, {"new": "n"})
    await live.sync()
    pushed = push(live.store, write_files(live.root / "later", {"a.txt": "later"}))
    await live.files.discard("r-1", keep_workspace=False)
    prepared = await live.files.prepare("r-1", pushed.revision, ignore_progress)
    live.run = replace(live.run, workspace=prepared.workspace)
    write_files(live.upper, {"second": "s"})
    (live.root / "s/runs/r-1/stored.json").write_bytes(b"{")
    end = await live.end()
    assert live.store.revision(end.revision).parent == pushed.revision


async def test_nothing_is_left_in_the_cache_of_a_sync_that_is_refused(live: Live) -> None:
    write_files(live.upper, {"new": "n"})

    @asynccontextmanager
    async def went_on() -> AsyncIterator[None]:
        yield
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await live.files.sync(
            live.run, at=1.0, standing_still=went_on(), on_progress=ignore_progress
        )
    assert list((live.root / "s/tmp").iterdir()) == []
    assert live.store.head(PROJECT) == live.base
    assert live.store.run_revision(PROJECT, "r-1") == ""


async def test_a_store_that_is_away_ends_a_sync_at_once_and_a_later_one_works(live: Live) -> None:
    write_files(live.upper, {"new": "n"})
    (live.root / "store").rename(live.root / "away")
    with pytest.raises(FaultError):
        await live.sync()
    assert list((live.root / "s/tmp").iterdir()) == []
    (live.root / "away").rename(live.root / "store")
    assert (await live.sync()).head == "moved"


# -- the copy --------------------------------------------------------------------------------------


async def test_everything_that_an_end_would_store_is_in_the_copy(live: Live) -> None:
    write_files(live.upper, {"a.txt": "new", "empty/": "", "run.sh": "#!"})
    (live.upper / "run.sh").chmod(0o755)
    (live.upper / "link").symlink_to("/etc/passwd")
    (live.upper / os.fsdecode(b"caf\xe9")).write_text("x")
    os.mkfifo(live.upper / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(live.upper / "sock"))
    opaque(live.upper / "b")
    write_files(live.upper, {"b/only": "o"})
    with (live.upper / "sparse").open("wb") as file:
        file.seek(40 << 20)
        file.write(b"end")
    sync = await live.sync()
    end = await live.end()
    assert end.revision == sync.revision
    assert sorted(end.skipped) == sorted(sync.skipped)
    assert {line.split(":")[0] for line in sync.skipped} == {"pipe", "sock"}


def test_holes_of_the_original_are_holes_in_the_copy(tmp_path: Path) -> None:
    upper = write_files(tmp_path / "upper", {"small": "s"})
    with (upper / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(500 << 20)
        file.write(b"middle")
    copy_changes(UpperDirectory(upper), tmp_path / "aside", threading.Event())
    facts = (tmp_path / "aside/sparse").stat()
    assert (facts.st_size, facts.st_blocks < 4096) == (1 << 30, True)
    with (tmp_path / "aside/sparse").open("rb") as file:
        file.seek(500 << 20)
        assert file.read(6) == b"middle"


def test_a_deep_directory_is_copied_and_one_too_deep_is_named(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    fd = os.open(upper, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    copied = copy_changes(UpperDirectory(upper), tmp_path / "aside", threading.Event())
    ((_, why),) = copied.skipped
    assert "deeper than 512" in why


def test_a_copy_is_ended_by_a_stop(tmp_path: Path) -> None:
    upper = write_files(tmp_path / "upper", {"a": "a"})
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledWorkError):
        copy_changes(UpperDirectory(upper), tmp_path / "aside", stop)

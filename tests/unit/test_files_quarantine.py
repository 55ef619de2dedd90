"""What was found damaged is put aside for a while, and never taken from under a live run."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executord.files.cache.layout import Layout
from executord.files.cache.quarantine import Bounds, Note, Quarantine
from executord.files.client.push import Pushed
from executord.files.store.store import Store
from tests.fakes.damage import (
    FILES,
    flip,
    make_project,
    prepare,
    seasoned,
    snapshot_home,
    until,
)
from tests.fakes.files import (
    contents,
    new_store,
    opened,
    push,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture
def pushed(store: Store, project: Path) -> Pushed:
    return push(store, project)


# -- the quarantine ------------------------------------------------------------------------------


async def test_a_bad_blob_is_kept_aside_with_a_note(
    tmp_path: Path, store: Store, pushed: Pushed
) -> None:
    root = await seasoned(tmp_path, store, pushed)
    flip(root / "b/c.txt")
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        assert (await files.stats()).quarantine_bytes == 4096
    (note_path,) = (tmp_path / "s/quarantine").glob("*.json")
    note = msgspec.json.decode(note_path.read_bytes(), type=Note)
    assert note.kind == "blob"
    assert note.found_by == "first use"
    assert note.trees == (pushed.tree,)
    assert note.hashes_to.startswith("sha256:")
    assert note.hashes_to != note.digest
    assert note_path.with_suffix("").read_bytes() == b"gccc"


def a_note(found_at: float, **changes: Any) -> Note:
    fields: dict[str, Any] = {"kind": "blob", "digest": "sha256:x", "what": "w"}
    return Note(**{**fields, "found_by": "scrub", "found_at": found_at, **changes})


def test_the_quarantine_is_bounded_and_lets_the_oldest_go_first(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    quarantine = Quarantine(layout, Bounds(max_bytes=3 * 4096, max_items=10, max_age_seconds=100))
    for n in range(5):
        path = tmp_path / f"bad{n}"
        path.write_text(str(n))
        assert quarantine.take(path, a_note(1000.0 + n))
    quarantine.tidy(lambda _: False, now=1010.0)
    assert [path.read_text() for path, _, _ in quarantine.held()] == ["2", "3", "4"]
    quarantine.tidy(lambda _: False, now=1103.5)
    assert [path.read_text() for path, _, _ in quarantine.held()] == ["4"]
    assert not quarantine.take(tmp_path / "gone", a_note(0.0))
    assert len(list(layout.quarantine.iterdir())) == 2


def test_a_snapshot_in_quarantine_stays_as_long_as_a_run_is_mounted_on_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    quarantine = Quarantine(layout)
    (tmp_path / "bad").mkdir()
    quarantine.take(tmp_path / "bad", a_note(0.0, kind="snapshot", runs=("r-1",)))
    quarantine.tidy(lambda run: run == "r-1", now=1e9)
    assert len(quarantine.held()) == 1
    quarantine.tidy(lambda _: False, now=1e9)
    assert list(layout.quarantine.iterdir()) == []


async def test_what_a_live_run_is_mounted_on_stays_and_the_others_get_a_new_one(
    tmp_path: Path, store: Store, project: Path, pushed: Pushed, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision, "live")
    root = snapshot_home(tmp_path / "s", pushed.tree) / "root"
    mounted = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flip(root / "b/c.txt")
        async with opened(tmp_path / "s", store) as files:
            assert await prepare(files, pushed.revision, "r-2") == "farm"
            assert contents(root) == contents(project)
            await files.prune(dry_run=False)
            assert os.listdir(mounted), "the files are still there for who is mounted on them"  # noqa: PTH208 - of a descriptor
            await files.discard("live", keep_workspace=False)
            await files.prune(dry_run=False)

            async def is_gone() -> bool:
                return not os.listdir(mounted)  # noqa: PTH208 - of a descriptor

            await until(is_gone)
    finally:
        os.close(mounted)
    out = capsys.readouterr().out
    assert "blob.quarantined" in out
    assert "'live'" in out


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_snapshot_that_nobody_knows_any_more_stays_for_live_runs(
    tmp_path: Path, store: Store, pushed: Pushed, restarted: bool
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision, "live")
        home = snapshot_home(tmp_path / "s", pushed.tree)
        mounted = os.open(home / "root", os.O_RDONLY | os.O_DIRECTORY)
        (home / "about").write_bytes(b"\xff")
        if not restarted:
            assert await prepare(files, pushed.revision, "r-2") == "farm"
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision, "r-2")
        await asyncio.to_thread(files._parts.sweeper.empty_trash, threading.Event())
        assert sorted(os.listdir(mounted)) == sorted([*{n.split("/")[0] for n in FILES}, "link"])  # noqa: PTH208 - of a descriptor
    os.close(mounted)

"""A store that is not the one a node has met takes nothing of its runs."""

import asyncio
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.files.store.store import Store
from tests.fakes.files import (
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opened,
    project_files,
    push,
    write_files,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


async def test_an_empty_directory_in_the_stores_place_gets_nothing_and_loses_nothing(
    tmp_path: Path, store: Store
) -> None:
    """As the mount point looks when its disk is not mounted."""
    pushed = push(store, write_files(tmp_path / "project", {"a": "1"}))
    async with opened(tmp_path / "s", store) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        write_files(tmp_path / "s/runs/r-1/upper", {"new": "precious"})
        (tmp_path / "store").rename(tmp_path / "away")
        (tmp_path / "store").mkdir()
        await asyncio.sleep(1.1)  # what was confirmed is believed for a second
        run = ended_run("r-1", prepared.workspace)
        with pytest.raises(FaultError) as caught:
            await files.keep(run, ignore_progress)
        assert caught.value.fault.reason is Reason.STORE_UNAVAILABLE
        assert "not the store that this node knows" in caught.value.fault.detail
        assert contents(tmp_path / "store") == {}
        (tmp_path / "store").rmdir()
        (tmp_path / "away").rename(tmp_path / "store")
        kept = await files.keep(run, ignore_progress)
        assert kept.result.head == "moved"


async def test_another_store_under_the_same_address_is_told_also_after_a_restart(
    tmp_path: Path, store: Store
) -> None:
    pushed = push(store, write_files(tmp_path / "project", {"a": "1"}))
    async with opened(tmp_path / "s", store) as files:
        await files.read_revision(pushed.revision)
    (tmp_path / "store").rename(tmp_path / "away")
    other = push(new_store(tmp_path / "store"), write_files(tmp_path / "other", {"b": "2"}))
    files = project_files(tmp_path / "s", store)
    await files.open()
    try:
        with pytest.raises(FaultError, match="another store's name"):
            await files.read_revision(other.revision)
    finally:
        await files.close()


async def test_a_store_that_was_replaced_on_purpose_is_met_anew(
    tmp_path: Path, store: Store
) -> None:
    pushed = push(store, write_files(tmp_path / "project", {"a": "1"}))
    async with opened(tmp_path / "s", store) as files:
        await files.read_revision(pushed.revision)
    (tmp_path / "store").rename(tmp_path / "away")
    other = push(new_store(tmp_path / "store"), write_files(tmp_path / "other", {"b": "2"}))
    (tmp_path / "s/stores.json").unlink()
    async with opened(tmp_path / "s", store) as files:
        assert (await files.read_revision(other.revision)).tree == other.tree


async def test_a_spoilt_memory_of_stores_is_as_none(tmp_path: Path, store: Store) -> None:
    pushed = push(store, write_files(tmp_path / "project", {"a": "1"}))
    (tmp_path / "s").mkdir()
    (tmp_path / "s/stores.json").write_bytes(b'{"\xff": 1')
    async with opened(tmp_path / "s", store) as files:
        assert (await files.read_revision(pushed.revision)).tree == pushed.tree
    memory = (tmp_path / "s/stores.json").read_bytes()
    for place in range(0, len(memory), 7):
        flipped = bytes((memory[place] ^ 1,))
        (tmp_path / "s/stores.json").write_bytes(memory[:place] + flipped + memory[place + 1 :])
        (tmp_path / "s/revisions-v1").rename(tmp_path / f"revisions-{place}")
        async with opened(tmp_path / "s", store) as files:
            assert (await files.read_revision(pushed.revision)).tree == pushed.tree
    async with opened(tmp_path / "s", store) as files:
        assert (await files.read_revision(pushed.revision)).tree == pushed.tree


async def test_a_project_without_a_head_gets_one_from_a_run(tmp_path: Path, store: Store) -> None:
    pushed = push(store, write_files(tmp_path / "project", {"a": "1"}), project="alice/first")
    async with opened(tmp_path / "s", store) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        write_files(tmp_path / "s/runs/r-1/upper", {"new": "2"})
        run = ended_run("r-1", prepared.workspace, project="alice/second")
        kept = await files.keep(run, ignore_progress)
    assert kept.result.head == "moved"
    assert store.head("alice/second") == kept.result.revision

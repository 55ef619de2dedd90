"""An end that cannot be stored at once: what was done is remembered, and nothing is given up."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from executord.core.reasons import FaultError, Reason
from executord.core.run import Run
from executord.files.cache.blobs import BlobKey
from executord.files.faults import CancelledWorkError, fault
from executord.files.model import digests
from executord.files.project_files import ProjectFiles
from executord.files.store.patience import Patience
from executord.files.store.store import Store
from executord.files.workspace.holes import hole_bytes, sparse_chunks
from executord.files.workspace.kept import disk_use
from executord.files.workspace.upload_journal import Note, UploadJournal, mark_of
from executord.ports import Progress
from tests.fakes.files import (
    ended_run,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)

AWAY = fault(Reason.STORE_UNAVAILABLE, "The store does not answer.")


# -- the journal of an upload ----------------------------------------------------------------------

DIGEST = digests.of_bytes(b"x")


def mark(name: str, **changes: int) -> bytes:
    facts = list(os.stat_result((0o100644, 1, 2, 1, 0, 0, 10, 0, 0, 0)))
    facts[6] = changes.get("size", 10)
    return mark_of(name, os.stat_result(facts))


def taken(*names: str) -> list[Note]:
    return [Note(mark(name), DIGEST, 10, executable=False) for name in names]


def test_what_was_taken_and_confirmed_is_known_to_the_next_one(tmp_path: Path) -> None:
    with UploadJournal(tmp_path / "j", "s") as journal:
        assert journal.find(mark("a")) is None
        journal.confirmed(journal.took(taken("a", "b")), 20)
        journal.took(taken("c"))
    with UploadJournal(tmp_path / "j", "s") as journal:
        found = [journal.find(mark(name)) for name in "abc"]
        assert [each and each.confirmed for each in found] == [True, True, False]
        assert {each and each.digest for each in found} == {DIGEST}
        assert journal.find(mark("d")) is None


def test_a_file_whose_marks_differ_is_not_believed(tmp_path: Path) -> None:
    with UploadJournal(tmp_path / "j", "s") as journal:
        journal.took(taken("a"))
    with UploadJournal(tmp_path / "j", "s") as journal:
        assert journal.find(mark("a", size=11)) is None
        assert journal.find(mark("b")) is None
        assert journal.find(mark("a")) is not None


@pytest.mark.parametrize("cut", [1, 30, 63, 64, 65, 127])
def test_a_torn_tail_is_ignored_and_written_over(tmp_path: Path, cut: int) -> None:
    with UploadJournal(tmp_path / "j", "s") as journal:
        journal.took(taken("a", "b", "c"))
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:-cut])
    left = 3 - -(-cut // 64)
    with UploadJournal(tmp_path / "j", "s") as journal:
        found = [journal.find(mark(name)) is not None for name in "abc"]
        assert found == [n < left for n in range(3)]
        journal.took(taken("d"))
    with UploadJournal(tmp_path / "j", "s") as journal:
        assert journal.find(mark("d")) is not None


def test_a_flipped_bit_ends_what_is_believed(tmp_path: Path) -> None:
    with UploadJournal(tmp_path / "j", "s") as journal:
        journal.took(taken("a", "b", "c"))
    data = bytearray((tmp_path / "j").read_bytes())
    data[2 * 64 + 40] ^= 4
    (tmp_path / "j").write_bytes(data)
    with UploadJournal(tmp_path / "j", "s") as journal:
        assert [journal.find(mark(n)) is not None for n in "abc"] == [True, False, False]


def test_another_store_and_an_old_confirmation_do_not_count(tmp_path: Path) -> None:
    with UploadJournal(tmp_path / "j", "s", now=1000.0) as journal:
        journal.confirmed(journal.took(taken("a")), 10)
    with UploadJournal(tmp_path / "j", "s", now=1000.0 + 90_000) as journal:
        found = journal.find(mark("a"))
        assert found is not None
        assert not found.confirmed
    with UploadJournal(tmp_path / "j", "another", now=1000.0) as journal:
        assert journal.find(mark("a")) is None


def test_confirmations_over_several_tries_name_what_they_mean(tmp_path: Path) -> None:
    with UploadJournal(tmp_path / "j", "s") as journal:
        journal.took(taken("a", "b", "c"))
    with UploadJournal(tmp_path / "j", "s") as journal:
        again = [journal.find(mark("a")), journal.find(mark("c"))]
        indexes = [each.record for each in again if each]
        journal.confirmed([*indexes, *journal.took(taken("d"))], 0)
    with UploadJournal(tmp_path / "j", "s") as journal:
        found = [journal.find(mark(name)) for name in "abcd"]
        assert [each and each.confirmed for each in found] == [True, False, True, True]


def test_a_journal_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        UploadJournal(tmp_path / "j", "s")
    assert not (tmp_path / "elsewhere").exists()


# -- a store that is away --------------------------------------------------------------------------


class Sometimes:
    """Fails as many times as it is told to."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise AWAY
        return "answer"


def test_a_store_that_comes_back_within_the_budget_is_waited_for_and_it_shows() -> None:
    told: list[Progress] = []
    call = Sometimes(2)
    patience = Patience(60.0, threading.Event(), told.append)
    assert patience.ask(call) == "answer"
    assert call.calls == 3
    assert all("the store does not answer; again in " in each.detail for each in told)
    assert len(told) == 2


def test_past_the_budget_the_stores_fault_is_told() -> None:
    call = Sometimes(1000)
    with pytest.raises(FaultError) as caught:
        Patience(0.6, threading.Event()).ask(call)
    assert caught.value.fault.reason is Reason.STORE_UNAVAILABLE
    assert call.calls >= 2


def test_waiting_for_a_store_is_ended_by_a_stop() -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(CancelledWorkError):
        Patience(600.0, stop).ask(Sometimes(1000))


def test_a_refusal_is_not_waited_for() -> None:
    def denied() -> str:
        raise fault(Reason.STORE_DENIED, "No.")

    with pytest.raises(FaultError) as caught:
        Patience(600.0, threading.Event()).ask(denied)
    assert caught.value.fault.reason is Reason.STORE_DENIED


# -- going on where it was left --------------------------------------------------------------------


@dataclass
class Ended:
    files: ProjectFiles
    store: Store
    root: Path
    run: Run
    upper: Path

    @property
    def home(self) -> Path:
        return self.upper.parent


@pytest.fixture
async def ended(tmp_path: Path) -> AsyncIterator[Ended]:
    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", {"a.txt": "a", "same": "same"}))
    async with opened(tmp_path / "s", store) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        run = ended_run("r-1", prepared.workspace)
        yield Ended(files, store, tmp_path, run, tmp_path / "s/runs/r-1/upper")


class Watched(Store):
    """The store of one keeper, whose calls are counted, and fail when told to."""

    asked: list[str]
    sent: list[str]
    refuses_after: int | None

    def absent_blobs(self, sizes: Any) -> dict[str, bool]:
        if self.refuses_after is not None and len(self.sent) >= self.refuses_after:
            raise AWAY
        self.asked.extend(sizes)
        return super().absent_blobs(sizes)

    def put_blobs(self, blobs: Iterable[Any], on_sent: Any, **more: Any) -> None:
        held = list(blobs)
        super().put_blobs(iter(held), on_sent, **more)
        self.sent.extend(blob.digest for blob in held)


def watch(ended: Ended, refuses_after: int | None = None) -> Watched:
    plain = ended.files._parts.store
    plain.__class__ = Watched
    assert isinstance(plain, Watched)
    plain.asked, plain.sent, plain.refuses_after = [], [], refuses_after
    return plain


async def test_what_the_store_has_confirmed_is_neither_read_nor_asked_for_again(
    ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executord.files.workspace import intake as module  # noqa: PLC0415

    monkeypatch.setattr(module, "_COMMIT_FILES", 10)
    write_files(ended.upper, {f"f{n:02}": f"content {n}" for n in range(45)})
    write_files(ended.upper, {"same": "same"})
    store = watch(ended, refuses_after=20)
    with pytest.raises(FaultError):
        await ended.files.keep(ended.run, ignore_progress)
    assert len(store.sent) == 20
    confirmed = set(store.sent)
    again = watch(ended)
    read: list[str] = []
    from executord.files.system.directories import open_regular  # noqa: PLC0415 - the real one

    def noted(dir_fd: int, name: str) -> int:
        read.append(name)
        return open_regular(dir_fd, name)

    monkeypatch.setattr(module, "open_regular", noted)
    kept = await ended.files.keep(ended.run, ignore_progress)
    assert kept.result.added == 45
    assert not confirmed & set(again.asked)
    assert not confirmed & set(again.sent)
    assert len(again.sent) == 25
    taken_before = 30  # three batches were taken in, two were confirmed
    assert len(read) <= 46 - taken_before


async def test_after_all_was_stored_nothing_is_read_or_asked_for_again(
    ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executord.files.workspace import intake as module  # noqa: PLC0415

    write_files(ended.upper, {"d/one": "1", "d/two": "2", "a.txt": "changed", "same": "same"})
    first = await ended.files.keep(ended.run, ignore_progress)

    def never(dir_fd: int, name: str) -> int:
        raise AssertionError(f"{name} is read again ({dir_fd})")

    monkeypatch.setattr(module, "open_regular", never)
    store = watch(ended)
    again = await ended.files.keep(ended.run, ignore_progress)
    assert again.result == replace(first.result, bytes_sent=0)
    assert store.asked == []


def blob_of(ended: Ended, key: BlobKey) -> Path:
    return Path(ended.files._parts.blobs.path(key))


async def test_a_blob_that_was_evicted_meanwhile_is_taken_in_again(ended: Ended) -> None:
    write_files(ended.upper, {"new": "content"})
    store = watch(ended, refuses_after=0)
    with pytest.raises(FaultError):
        await ended.files.keep(ended.run, ignore_progress)
    assert store.sent == []
    key = BlobKey(digests.of_bytes(b"content"), executable=False)
    blob_of(ended, key).unlink()
    watch(ended)
    assert (await ended.files.keep(ended.run, ignore_progress)).result.added == 1
    assert b"".join(ended.store.blob(key.digest, 7)) == b"content"


async def test_a_blob_that_was_damaged_meanwhile_is_taken_in_again(ended: Ended) -> None:
    write_files(ended.upper, {"new": "content"})
    watch(ended, refuses_after=0)
    with pytest.raises(FaultError):
        await ended.files.keep(ended.run, ignore_progress)
    key = BlobKey(digests.of_bytes(b"content"), executable=False)
    blob_of(ended, key).write_bytes(b"CONTENT")
    watch(ended)
    assert (await ended.files.keep(ended.run, ignore_progress)).result.added == 1
    assert b"".join(ended.store.blob(key.digest, 7)) == b"content"


async def test_the_end_waits_for_a_store_that_comes_back(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", {"a.txt": "a"}))
    async with opened(tmp_path / "s", store, store_patience_seconds=30.0) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        write_files(tmp_path / "s/runs/r-1/upper", {"new": "n"})
        (tmp_path / "store").rename(tmp_path / "away")
        asked = threading.Event()

        def look(progress: Progress) -> None:
            if "does not answer" in progress.detail:
                asked.set()

        keeping = asyncio.create_task(files.keep(ended_run("r-1", prepared.workspace), look))
        async with asyncio.timeout(10):
            await asyncio.to_thread(asked.wait)
        (tmp_path / "away").rename(tmp_path / "store")
        assert (await keeping).result.head == "moved"


# -- kept workspaces -------------------------------------------------------------------------------


async def test_a_kept_workspace_is_listed_with_what_it_takes(ended: Ended) -> None:
    assert await ended.files.workspaces_kept() == []
    write_files(ended.upper, {"big": b"x" * 500_000, "d/small": "s"})
    os.link(ended.upper / "big", ended.upper / "again")
    await ended.files.discard("r-1", keep_workspace=True)
    (kept,) = await ended.files.workspaces_kept()
    assert kept.run_id == "r-1"
    assert 500_000 <= kept.bytes < 600_000
    assert (kept.bytes, kept.inodes) == disk_use(ended.home)
    await ended.files.keep(ended.run, ignore_progress)
    await ended.files.discard("r-1", keep_workspace=False)
    assert await ended.files.workspaces_kept() == []


async def test_one_in_which_nothing_was_changed_is_told_to_be_empty(ended: Ended) -> None:
    write_files(ended.upper, {"new": "n"})
    await ended.files.discard("r-1", keep_workspace=True)
    (kept,) = await ended.files.workspaces_kept()
    assert not kept.is_empty
    (ended.upper / "new").unlink()
    (kept,) = await ended.files.workspaces_kept()
    assert kept.is_empty


async def test_it_is_told_from_when_on_it_is_kept(ended: Ended) -> None:
    before = ended.files._parts.workspaces.lease("r-1")
    await ended.files.discard("r-1", keep_workspace=True)
    report = (await ended.files.stats()).report
    assert report is not None
    assert before is not None
    assert report.kept[0].since > before.made_at


# -- holes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [[], [(0, b"x")], [(5 << 20, b"end")], [(0, b"begin"), (3 << 20, b"mid"), (9 << 20, b"")]],
)
def test_a_file_with_holes_gives_all_its_bytes(
    tmp_path: Path, pieces: list[tuple[int, bytes]]
) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        for at, data in pieces:
            file.seek(at)
            file.write(data)
        file.truncate(max((at + len(data) for at, data in pieces), default=0) + 4096)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert b"".join(sparse_chunks(fd)) == path.read_bytes()
        assert hole_bytes(fd, 0) >= 0
    finally:
        os.close(fd)


async def test_a_file_that_is_nothing_but_holes_is_named_and_not_hashed(ended: Ended) -> None:
    with (ended.upper / "sparse").open("wb") as file:
        file.truncate(100 << 30)
        file.write(b"begin")
    result = (await ended.files.keep(ended.run, ignore_progress)).result
    assert result.head == "unchanged"
    assert result.skipped == (f"sparse: a sparse file with more than {16 << 30} bytes of holes",)

"""A write or fsync that fails closes the journal for good: nothing is promised after it."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executord.journal.journal import SqliteJournal
from executord.ports import DiskFullError, JournalError
from tests.fakes.lives import SteppedClock, accepted, begun, scheduled


async def opened(folder: Path) -> SqliteJournal:
    journal = SqliteJournal(folder / "journal.sqlite", clock=SteppedClock())
    await journal.open()
    return journal


@contextmanager
def wal_replaced_by(device: str, folder: Path) -> Iterator[None]:
    """The kernel's own odd files fail in the ways of a broken disk: writes to /dev/full find no
    space, /dev/null takes every write and cannot be synced, /proc/version cannot be written.
    """
    wal = f"{folder.resolve()}/journal.sqlite-wal"
    (fd,) = [int(link.name) for link in Path("/proc/self/fd").iterdir() if _target(link) == wal]
    kept = os.dup(fd)
    odd = os.open(device, os.O_RDWR if device != "/proc/version" else os.O_RDONLY)
    os.dup2(odd, fd)
    os.close(odd)
    try:
        yield
    finally:
        os.dup2(kept, fd)
        os.close(kept)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("device", ["/dev/null", "/proc/version"])
async def test_a_failed_fsync_or_write_is_never_tried_again(tmp_path: Path, device: str) -> None:
    journal = await opened(tmp_path)
    run = await begun(journal, await accepted(journal, "r-1"))
    with wal_replaced_by(device, tmp_path), pytest.raises(JournalError, match="cannot be written"):
        await accepted(journal, "r-2")
    async with asyncio.timeout(5):
        await journal.failed.wait()
    assert "cannot be written" in journal.failure
    with pytest.raises(JournalError):
        await accepted(journal, "r-3")
    with pytest.raises(JournalError):
        await journal.run("r-1")
    await journal.close()

    journal = await opened(tmp_path)
    assert await journal.run("r-1") == run
    assert await journal.run("r-3") is None
    told = await journal.transitions_after(0, 100)
    assert [each.seq for each in told] == list(range(1, len(told) + 1))
    await journal.close()


async def test_everybody_who_waits_is_told_of_the_failure(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    runs = [await accepted(journal, f"r-{n}") for n in range(10)]
    with wal_replaced_by("/dev/null", tmp_path):
        answers = await asyncio.gather(
            *(scheduled(journal, run) for run in runs), return_exceptions=True
        )
    assert all(isinstance(answer, JournalError) for answer in answers)
    await journal.close()


async def test_no_space_is_no_failure(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    journal = await opened(tmp_path)
    with wal_replaced_by("/dev/full", tmp_path), pytest.raises(DiskFullError):
        await accepted(journal, "r-1")
    assert not journal.failed.is_set()
    await accepted(journal, "r-2")
    assert await journal.run("r-1") is None
    assert await journal.last_seq() == 1
    await journal.close()


async def test_a_disk_that_hangs_fails_the_journal_and_frees_who_waits(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.sqlite", clock=SteppedClock(), deadline_seconds=0.2)
    journal._database._watch_seconds = 0.05
    await journal.open()
    reader, writer = os.pipe()
    # The thread is held by a read from an empty pipe, as it would be by a disk.
    held = asyncio.create_task(journal._read(lambda _: os.read(reader, 1)))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(accepted(journal, "r-1"))
    async with asyncio.timeout(5):
        await journal.failed.wait()
        for task in (held, waiting):
            with pytest.raises(JournalError, match="does not answer"):
                await task
    os.write(writer, b"x")
    await journal.close()
    os.close(reader)
    os.close(writer)
    journal = await opened(tmp_path)
    assert await journal.run("r-1") is None
    await journal.close()

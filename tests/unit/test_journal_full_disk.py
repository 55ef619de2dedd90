"""A full disk refuses new work, still takes ends, and is forgotten when there is space again."""

import asyncio
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from executord.journal.journal import SqliteJournal
from executord.ports import DiskFullError
from tests.fakes.lives import SteppedClock, accepted, begun, ended, scheduled

SIZE = 24 * 1024 * 1024


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    else:
        image = tmp_path / "disk.img"
        with image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no {request.param} can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def journal(small_disk: Path, clock: SteppedClock) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(small_disk / "journal.sqlite", clock=clock)
    await journal.open()
    yield journal
    await journal.close()


def fill(disk: Path) -> Path:
    """Down to the last block."""
    ballast = disk / "ballast"
    size = 1024 * 1024
    with ballast.open("ab", buffering=0) as file:
        while size >= 512:
            try:
                file.write(b"\xff" * size)
                os.fsync(file.fileno())
            except OSError:
                size //= 2
    return ballast


async def accept_until_full(journal: SqliteJournal) -> list[str]:
    """What was accepted before the disk was full."""
    ids: list[str] = []
    for number in range(10_000):
        try:
            await accepted(journal, f"filler-{number}")
        except DiskFullError:
            return ids
        ids.append(f"filler-{number}")
    pytest.fail("the disk never got full")


async def keep_facts_for_ever(journal: SqliteJournal, size: int) -> None:
    for number in itertools.count():
        await journal.put_fact(f"filler-{size}", f"{number:0100}", {"text": "x" * size})


async def test_on_a_full_disk_new_runs_are_refused_and_ends_are_still_written(
    journal: SqliteJournal, small_disk: Path, clock: SteppedClock
) -> None:
    runs = [await begun(journal, await accepted(journal, f"r-{n}")) for n in range(100)]
    ballast = fill(small_disk)
    kept = await accept_until_full(journal)

    for run in runs:
        await ended(journal, run)
    with pytest.raises(DiskFullError, match="Free space"):
        await accepted(journal, "too-late")
    assert await journal.run("too-late") is None
    assert not journal.failed.is_set()
    told = await journal.transitions_after(0, 10_000)
    assert len(told) == 100 * 4 + len(kept)
    assert [each.seq for each in told] == list(range(1, len(told) + 1))

    ballast.unlink()
    clock.time += 2
    await accepted(journal, "in-time")
    reserve = small_disk / "journal.reserve"
    assert reserve.stat().st_blocks * 512 >= 4 * 1024 * 1024
    assert {run.id for run in await journal.unfinished_runs()} == {*kept, "in-time"}


async def test_the_reserve_is_not_for_new_runs(journal: SqliteJournal, small_disk: Path) -> None:
    fill(small_disk)
    await accept_until_full(journal)
    for number in range(300):
        with pytest.raises(DiskFullError):
            await accepted(journal, f"r-{number}")
    assert (small_disk / "journal.reserve").stat().st_blocks * 512 >= 4 * 1024 * 1024


async def test_a_repetition_is_recognised_also_on_a_full_disk(
    journal: SqliteJournal, small_disk: Path
) -> None:
    run = await accepted(journal, "r-1")
    fill(small_disk)
    await accept_until_full(journal)
    assert await accepted(journal, "r-1") == run


async def test_when_the_reserve_is_used_up_an_end_is_refused_whole_and_can_be_tried_again(
    journal: SqliteJournal, small_disk: Path
) -> None:
    run = await accepted(journal, "r-1")
    ballast = fill(small_disk)
    await accept_until_full(journal)
    before = await journal.last_seq()
    for size in (200_000, 20_000, 2_000, 0):
        with pytest.raises(DiskFullError):
            await keep_facts_for_ever(journal, size)
    with pytest.raises(DiskFullError):
        await scheduled(journal, run)
    assert await journal.last_seq() == before
    assert await journal.run("r-1") == run

    ballast.unlink()
    after = await scheduled(journal, run)
    assert await journal.run("r-1") == after
    assert await journal.last_seq() == before + 1


async def test_an_accept_beside_ends_does_not_take_them_down(
    journal: SqliteJournal, small_disk: Path
) -> None:
    runs = [await accepted(journal, f"r-{n}") for n in range(20)]
    fill(small_disk)
    await accept_until_full(journal)
    answers = await asyncio.gather(
        *(accepted(journal, f"new-{n}") for n in range(20)),
        *(scheduled(journal, run) for run in runs),
        return_exceptions=True,
    )
    assert all(isinstance(answer, DiskFullError) for answer in answers[:20])
    assert not any(isinstance(answer, BaseException) for answer in answers[20:])


async def test_what_was_promised_before_the_disk_was_full_is_there_after_a_restart(
    small_disk: Path, clock: SteppedClock
) -> None:
    journal = SqliteJournal(small_disk / "journal.sqlite", clock=clock)
    await journal.open()
    ballast = fill(small_disk)
    kept = await accept_until_full(journal)
    await journal.close()
    journal = SqliteJournal(small_disk / "journal.sqlite", clock=clock)
    await journal.open()
    try:
        assert [run.id for run in await journal.unfinished_runs()] == kept
        ballast.unlink()
        clock.time += 2
        await accepted(journal, "next")
    finally:
        await journal.close()

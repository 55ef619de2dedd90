"""The file sink appends whole lines, and takes back what it cannot be sure of."""

import asyncio
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executord.core.cloudevents import CloudEvent, cloud_event
from executord.upstream.file import FileSink
from executord.upstream.sinks import Again, Delivered
from tests.fakes.lives import transition


def events(*seqs: int) -> list[CloudEvent]:
    return [cloud_event("n", transition("r-1", seq, seq=seq)) for seq in seqs]


def seqs_in(path: Path) -> list[int]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line)["data"]["seq"] for line in text.splitlines()]


async def test_every_event_is_a_line_and_batches_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    sink = FileSink(path)
    assert await sink.deliver(events(1, 2)) == Delivered()
    assert await sink.deliver(events(3)) == Delivered()
    await sink.close()
    assert seqs_in(path) == [1, 2, 3]


async def test_a_restart_appends(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    for seq in (1, 2):
        sink = FileSink(path)
        await sink.deliver(events(seq))
        await sink.close()
    assert seqs_in(path) == [1, 2]


@pytest.mark.parametrize("partial", ['{"half', "x" * 200_000])
@pytest.mark.parametrize("whole", [0, 1])
async def test_a_part_of_a_line_that_a_crash_left_is_cut_off(
    tmp_path: Path, partial: str, whole: int
) -> None:
    path = tmp_path / "events.ndjson"
    sink = FileSink(path)
    await sink.deliver(events(*range(1, whole + 1)))
    await sink.close()
    with path.open("a") as file:
        file.write(partial)
    sink = FileSink(path)
    assert await sink.deliver(events(2)) == Delivered()
    await sink.close()
    assert seqs_in(path) == [*range(1, whole + 1), 2]


async def test_a_file_that_was_rotated_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    sink = FileSink(path)
    await sink.deliver(events(1))
    path.rename(tmp_path / "events.ndjson.1")
    await sink.deliver(events(2))
    await sink.close()
    assert seqs_in(tmp_path / "events.ndjson.1") == [1]
    assert seqs_in(path) == [2]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel cuts writes at this size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_write_that_stops_in_the_middle_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    sink = FileSink(path)
    await sink.deliver(events(1))
    size = path.stat().st_size
    with file_size_limit(size + 700):
        verdict = await sink.deliver(events(2, 3, 4))
    assert isinstance(verdict, Again)
    assert path.stat().st_size == size
    assert await sink.deliver(events(2, 3, 4)) == Delivered()
    await sink.close()
    assert seqs_in(path) == [1, 2, 3, 4]


async def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("fifo", "folder", "link", "missing/file"):
        async with asyncio.timeout(5):
            verdict = await FileSink(tmp_path / name).deliver(events(1))
        assert isinstance(verdict, Again), name
        assert str(tmp_path / name) in verdict.why
    assert not (tmp_path / "target").exists()


async def test_a_cancelled_delivery_is_whole_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    sink = FileSink(path)
    task = asyncio.create_task(sink.deliver(events(*range(1, 2000))))
    await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await sink.deliver(events(2000)) == Delivered()
    await sink.close()
    assert seqs_in(path)[-1] == 2000
    assert seqs_in(path) in (list(range(1, 2001)), [2000])

"""Consoles of real containers, read from the files that the engine writes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from executord.console.archive import ConsoleArchive
from tests.fakes.consoles import assert_without_jumps, text_of
from tests.fakes.plain_containers import PYTHON, PlainContainer, container, engine_or_skip
from tests.setup.docker_http import EngineHttp

RUN = "r-1"
MIB = 1 << 20


@pytest.fixture(scope="module")
def engine() -> EngineHttp:
    return engine_or_skip()


def archive_at(directory: Path, limit_bytes: int = 64 * MIB) -> ConsoleArchive:
    return ConsoleArchive(directory=directory, limit_bytes=limit_bytes, is_live=lambda _: True)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[ConsoleArchive]:
    made = archive_at(tmp_path)
    await made.open()
    yield made
    await made.close()


async def run(archive: ConsoleArchive, made: PlainContainer) -> None:
    await asyncio.to_thread(made.start)
    await archive.collect(RUN, made.facts())
    await asyncio.to_thread(made.wait)
    assert made.facts().state == "exited"
    await archive.drain(RUN)


async def text(archive: ConsoleArchive, stream: str | None = None) -> bytes:
    records = [r async for r in archive.read(RUN, since=0, follow=False, stream=None)]
    assert_without_jumps(records)
    return text_of([record for record in records if stream in (None, record.stream)])


async def test_both_streams_are_kept_and_what_ends_without_a_newline(
    engine: EngineHttp, archive: ConsoleArchive
) -> None:
    script = "echo one; echo oops >&2; printf end"
    with container(engine, "/bin/sh", "-c", script) as made:
        await run(archive, made)
    assert await text(archive, "stdout") == b"one\nend"
    assert await text(archive, "stderr") == b"oops\n"


async def test_long_lines_odd_bytes_and_empty_lines_come_through_whole(
    engine: EngineHttp, archive: ConsoleArchive
) -> None:
    script = (
        "import sys\n"
        "sys.stdout.write('x' * 100_000 + '\\n\\n' + chr(0) + chr(27) + '[1m\\u00e9\\r\\n')\n"
        "sys.stdout.flush(); sys.stdout.buffer.write(b'\\xff\\xfe\\n')\n"
    )
    with container(engine, "python3", "-X", "utf8", "-c", script, image=PYTHON) as made:
        await run(archive, made)
    kept = await text(archive)
    assert kept.startswith(b"x" * 100_000 + b"\n\n\0\x1b[1m\xc3\xa9\r\n")
    assert kept.endswith("\ufffd\ufffd\n".encode())  # the engine's log cannot hold such bytes


async def test_a_flood_through_rotated_logs_loses_nothing_over_two_restarts(
    engine: EngineHttp, tmp_path: Path
) -> None:
    count = 300_000
    script = f'i=0; while [ $i -lt {count} ]; do echo "line $i"; i=$((i+1)); done'
    archive = archive_at(tmp_path)
    await archive.open()
    with container(engine, "/bin/sh", "-c", script, log_max_bytes=8 * MIB) as made:
        await asyncio.to_thread(made.start)
        for _ in range(2):
            await archive.collect(RUN, made.facts())
            await asyncio.sleep(0.4)
            await archive.close()
            archive = archive_at(tmp_path)
            await archive.open()
        await archive.collect(RUN, made.facts())
        await asyncio.to_thread(made.wait)
        await archive.drain(RUN)
    await archive.seal(RUN)
    assert await text(archive) == b"".join(b"line %d\n" % number for number in range(count))
    await archive.close()


async def test_a_follower_sees_a_line_while_the_container_still_runs(
    engine: EngineHttp, archive: ConsoleArchive
) -> None:
    with container(engine, "/bin/sh", "-c", "echo now; sleep 30") as made:
        await asyncio.to_thread(made.start)
        await archive.collect(RUN, made.facts())
        async with (
            asyncio.timeout(5),
            aclosing(archive.read(RUN, since=0, follow=True, stream=None)) as console,
        ):
            record = await anext(console)
        assert record.data == b"now\n"
        assert made.facts().state == "running"


async def test_a_container_removed_by_somebody_else_leaves_what_it_wrote(
    engine: EngineHttp, archive: ConsoleArchive
) -> None:
    with container(engine, "/bin/sh", "-c", "echo before; sleep 30") as made:
        await asyncio.to_thread(made.start)
        await archive.collect(RUN, made.facts())
        async with aclosing(archive.read(RUN, since=0, follow=True, stream=None)) as console:
            await anext(console)
        await asyncio.to_thread(made.remove)
        async with asyncio.timeout(5):
            await archive.drain(RUN)
            await archive.seal(RUN)
        assert await text(archive) == b"before\n"
        made.remove = lambda: None  # type: ignore[method-assign]

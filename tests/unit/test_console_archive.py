import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from executord.console.archive import ConsoleArchive
from executord.console.records import Cursor
from executord.console.sources import Found, JsonLogSource
from executord.core.reasons import FaultError, Reason
from executord.ports import ConsoleRecord, ContainerFacts, Stream
from tests.fakes.consoles import assert_without_jumps, text_of
from tests.fakes.engine_log import EngineLog, entry

RUN = "r-1"
MIB = 1 << 20


class Node:
    """An archive with one container's log beside it."""

    def __init__(self, root: Path, *, limit_bytes: int = 8 * MIB) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.live = {RUN}
        self.secrets: tuple[str, ...] = ()
        self.log = EngineLog(root / "c-json.log")
        self.archive = self.make()

    def make(self) -> ConsoleArchive:
        async def secrets_of(_: str) -> Sequence[str]:
            return self.secrets

        return ConsoleArchive(
            directory=self.root / "state",
            limit_bytes=self.limit_bytes,
            is_live=lambda run_id: run_id in self.live,
            secrets=secrets_of,
            poll_seconds=0.01,
            sync_seconds=0.05,
            drain_seconds=30.0,
        )

    async def restart(self) -> None:
        await self.archive.close()
        self.archive = self.make()
        await self.archive.open()

    async def collect(self, run_id: str = RUN) -> None:
        facts = ContainerFacts(id="c", name="c", state="running", log_path=str(self.log.path))
        await self.archive.collect(run_id, facts)

    async def end(self) -> None:
        await self.archive.drain(RUN)
        await self.archive.seal(RUN)
        self.live.discard(RUN)

    async def read(
        self, run_id: str = RUN, *, since: int = 0, stream: Stream | None = None
    ) -> list[ConsoleRecord]:
        console = self.archive.read(run_id, since=since, follow=False, stream=stream)
        return [record async for record in console]

    async def text(self, *, since: int = 0, stream: Stream | None = None) -> bytes:
        return text_of(await self.read(since=since, stream=stream))

    async def follow(self, *, since: int = 0) -> list[ConsoleRecord]:
        console = self.archive.read(RUN, since=since, follow=True, stream=None)
        return [record async for record in console]

    def directory(self, run_id: str = RUN) -> Path:
        return self.root / "state" / "consoles-v1" / run_id


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    await made.archive.open()
    yield made
    await made.archive.close()
    made.log.close()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("console-")]
    assert left == []


async def test_output_is_kept_and_read_again_after_the_end(node: Node) -> None:
    await node.collect()
    node.log.write("one\n")
    node.log.write("oops\n", "stderr")
    node.log.write("two\n")
    await node.archive.drain(RUN)
    live = await node.read()
    await node.end()
    assert await node.read() == live
    assert await node.text(stream="stderr") == b"oops\n"
    assert await node.text(since=6) == b"ps\ntwo\n"
    assert [path.name for path in node.directory().iterdir()] == ["console.sealed"]


async def test_a_run_that_is_neither_known_nor_live_ends_at_once(node: Node) -> None:
    async with asyncio.timeout(1):
        async with aclosing(
            node.archive.read("stranger", since=0, follow=True, stream=None)
        ) as console:
            assert [record async for record in console] == []
    assert not node.directory("stranger").exists()


async def test_whoever_follows_before_the_first_byte_gets_it_within_a_tenth_of_a_second(
    node: Node,
) -> None:
    follower = asyncio.create_task(node.follow())
    await asyncio.sleep(0.05)
    assert not follower.done()
    await node.collect()
    delays: list[float] = []
    async with aclosing(node.archive.read(RUN, since=0, follow=True, stream=None)) as console:
        for _ in range(10):
            node.log.write("now\n")
            written = time.monotonic()
            await anext(console)
            delays.append(time.monotonic() - written)
    assert sorted(delays)[5] < 0.1
    await node.end()
    assert text_of(await follower) == b"now\n" * 10


async def test_following_ends_when_the_console_is_sealed_without_a_byte(node: Node) -> None:
    follower = asyncio.create_task(node.follow())
    await asyncio.sleep(0.05)
    await node.archive.seal(RUN)
    async with asyncio.timeout(1):
        assert await follower == []
    assert not node.directory().exists()


async def test_a_slow_follower_holds_up_neither_collecting_nor_a_fast_one(node: Node) -> None:
    await node.collect()
    slow_console = node.archive.read(RUN, since=0, follow=True, stream=None)
    for number in range(3000):
        node.log.write(f"{number:0999d}\n", time_ns=number * 10_000_000)
    slow = [await anext(slow_console)]
    fast = asyncio.create_task(node.follow())
    async with asyncio.timeout(20):
        await node.archive.drain(RUN)
        await node.archive.seal(RUN)
        assert len(text_of(await fast)) == 3_000_000
    slow += [record async for record in slow_console]
    assert_without_jumps(slow)
    assert text_of(slow) == text_of(await fast)


async def test_a_flood_is_cut_to_its_first_and_last_half_while_it_is_followed(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, limit_bytes=2 * MIB)
    await node.archive.open()
    node.log.max_bytes = 20 * MIB
    line = "x" * 8_000
    count = 12_500
    flood = b"".join(
        entry("stdout", f"{number:08d}{line}\n", number * 100_000) for number in range(count)
    )
    node.log.write_raw(flood)
    await node.collect()
    follower = asyncio.create_task(node.follow())
    async with asyncio.timeout(60):
        await node.end()
    followed = await follower
    kept = await node.read()
    for records in (followed, kept):
        assert_without_jumps(records)
        assert records[-1].end == count * 8_009
    assert any(record.stream == "gap" for record in kept)
    assert text_of(kept).startswith(b"00000000xx")
    assert text_of(kept)[-8_009:].startswith(b"%08d" % (count - 1))
    disk = sum(path.stat().st_size for path in node.directory().iterdir())
    assert disk < 2 * MIB
    await node.archive.close()
    node.log.close()


async def test_collecting_goes_on_after_a_restart_without_loss_or_repetition(node: Node) -> None:
    await node.collect()
    node.log.write("one\n")
    async with aclosing(node.archive.read(RUN, since=0, follow=True, stream=None)) as console:
        await anext(console)
    await node.restart()
    node.log.write("two\n")
    assert await node.text() == b"one\n"
    await node.collect()
    node.log.write("three\n")
    await node.end()
    assert await node.text() == b"one\ntwo\nthree\n"


async def test_a_drained_console_is_not_collected_twice(node: Node) -> None:
    node.log.write("one\n")
    await node.collect()
    await node.archive.drain(RUN)
    await node.collect()
    await node.archive.drain(RUN)
    await node.restart()
    await node.collect()
    await node.archive.drain(RUN)
    assert await node.text() == b"one\n"


async def test_the_output_of_a_build_comes_first_and_is_marked(node: Node) -> None:
    node.secrets = ("hunter2",)
    await node.archive.append(RUN, "build", b"Step 1: hun")
    await node.archive.append(RUN, "build", b"ter2 and so")
    await node.archive.append(RUN, "build", b"me more h")
    node.log.write("hunter2 runs\n")
    await node.collect()
    await node.end()
    records = await node.read()
    assert {record.stream for record in records[:-1]} == {"build"}
    assert text_of(records) == b"Step 1: *** and some more h*** runs\n"
    assert_without_jumps(records)


async def test_a_secret_never_reaches_the_disk(node: Node) -> None:
    node.archive.register_secrets(RUN, ["p4ssw0rd-of-mine"])
    node.log.write("p4ssw0rd-of-mine\np4ssw0rd-of-")
    node.log.write("mine" + "x" * 40_000 + "p4ssw0rd-of-mine\n", "stderr")
    node.log.write("mine\n")
    await node.collect()
    await node.archive.drain(RUN)
    for path in node.directory().iterdir():
        assert b"p4ssw0rd-of-" not in path.read_bytes()
    assert await node.text(stream="stdout") == b"***\n***\n"


async def test_nothing_is_added_to_a_sealed_console(node: Node) -> None:
    node.log.write("one\n")
    await node.collect()
    await node.end()
    await node.archive.append(RUN, "build", b"late")
    await node.collect()
    await node.archive.seal(RUN)
    assert await node.text() == b"one\n"


async def test_a_deleted_console_is_gone_and_its_followers_end(node: Node) -> None:
    await node.archive.append(RUN, "build", b"text")
    follower = asyncio.create_task(node.follow())
    await asyncio.sleep(0.05)
    await node.archive.delete(RUN)
    async with asyncio.timeout(3):
        assert text_of(await follower) == b"text"
    assert not node.directory().exists()
    assert await node.read() == []
    await node.archive.delete(RUN)


async def test_closing_the_archive_ends_followers(node: Node) -> None:
    follower = asyncio.create_task(node.follow())
    await asyncio.sleep(0.05)
    async with asyncio.timeout(3):
        await node.archive.close()
        assert await follower == []


async def test_a_drain_that_cannot_be_finished_is_given_up_with_a_gap(tmp_path: Path) -> None:
    class EndlessSource(JsonLogSource):
        def read(self) -> Sequence[Found]:
            raise OSError(5, "Input/output error")

    node = Node(tmp_path)
    node.archive = ConsoleArchive(
        directory=tmp_path,
        limit_bytes=MIB,
        is_live=lambda _: True,
        open_source=EndlessSource,
        drain_seconds=0.2,
    )
    await node.archive.open()
    await node.collect()
    async with asyncio.timeout(5):
        await node.archive.drain(RUN)
    [gap] = await node.read()
    assert (gap.stream, gap.lost_bytes) == ("gap", 0)
    await node.archive.close()
    node.log.close()


async def test_a_log_that_breaks_holds_up_no_other(tmp_path: Path) -> None:
    class BrokenSource(JsonLogSource):
        def resume(self, cursor: Cursor) -> Cursor:
            if "broken" in self.path.name:
                raise RuntimeError("a mistake")
            return JsonLogSource.resume(self, cursor)

    archive = ConsoleArchive(
        directory=tmp_path,
        limit_bytes=MIB,
        is_live=lambda _: True,
        open_source=BrokenSource,
        drain_seconds=0.5,
    )
    await archive.open()
    log = EngineLog(tmp_path / "fine.log")
    log.write("fine\n")
    for name in ("broken", "fine"):
        path = str(tmp_path / f"{name}.log")
        await archive.collect(
            name, ContainerFacts(id=name, name=name, state="running", log_path=path)
        )
    async with asyncio.timeout(5):
        await archive.drain("fine")
        await archive.drain("broken")
    console = archive.read("fine", since=0, follow=False, stream=None)
    assert text_of([record async for record in console]) == b"fine\n"
    await archive.close()
    log.close()


async def test_a_disk_that_cannot_be_written_is_a_fault_and_not_a_crash(node: Node) -> None:
    node.directory("r-2").parent.mkdir(parents=True, exist_ok=True)
    node.directory("r-2").write_bytes(b"in the way")
    with pytest.raises(FaultError) as caught:
        await node.archive.append("r-2", "build", b"text")
    assert caught.value.fault.reason is Reason.INTERNAL


@pytest.mark.parametrize("run_id", ["../escape", "a/b", ".hidden", "", "x" * 300, "é\udcff"])
async def test_an_odd_run_id_stays_inside_the_archive(node: Node, run_id: str) -> None:
    await node.archive.append(run_id, "build", b"text")
    assert text_of(await node.read(run_id)) == b"text"
    [made] = (node.root / "state" / "consoles-v1").iterdir()
    assert made.name.startswith("+")
    await node.archive.delete(run_id)
    assert not made.exists()


COLLECTOR = """
import asyncio, sys
from pathlib import Path
from executord.console.archive import ConsoleArchive
from executord.ports import ContainerFacts

async def main(root, log):
    archive = ConsoleArchive(
        directory=Path(root), limit_bytes=1 << 26, is_live=lambda _: True, poll_seconds=0.002
    )
    await archive.open()
    await archive.collect(
        "r-1", ContainerFacts(id="c", name="c", state="running", log_path=log)
    )
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_again_and_again_while_a_log_grows_it_keeps_every_byte_once(
    tmp_path: Path,
) -> None:
    log = EngineLog(tmp_path / "c-json.log", max_bytes=3 * MIB)
    written: list[str] = []
    stop = threading.Event()

    def grow() -> None:
        number = 0
        while not stop.is_set() or number < 2000:
            text = f"{number:06d} {'x' * (number % 700)}\n"
            log.write(text, "stdout" if number % 3 else "stderr")
            written.append(text)
            number += 1
            if number % 20 == 0:
                time.sleep(0.002)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for round_number in range(6):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", COLLECTOR, str(tmp_path), str(log.path)),
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            assert process.stdout is not None
            await process.stdout.readline()
            await asyncio.sleep(0.03 + 0.04 * round_number)
            process.kill()
            await process.wait()
    finally:
        stop.set()
        writer.join()
    archive = ConsoleArchive(directory=tmp_path, limit_bytes=1 << 26, is_live=lambda _: True)
    await archive.open()
    await archive.collect(
        RUN, ContainerFacts(id="c", name="c", state="exited", log_path=str(log.path))
    )
    await archive.drain(RUN)
    records = [r async for r in archive.read(RUN, since=0, follow=False, stream=None)]
    await archive.close()
    log.close()
    assert_without_jumps(records)
    assert not any(record.stream == "gap" for record in records)
    assert text_of(records).decode() == "".join(written)

"""An engine that cannot be reached, hangs, hangs up or talks nonsense is unavailable, in time."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from executord.core.reasons import Fault, FaultError, Reason
from executord.engine.docker import DockerEngine
from executord.ports import BuildSpec, ContainerSpec
from tests.fakes.engine_socket import Handler, answers, engine_socket, never_answers, streams

DEADLINE_SECONDS = 0.15  # for engines that hang
PATIENT_SECONDS = 10.0  # for engines that answer, on a busy machine

SPEC = ContainerSpec(
    name="executord-x",
    image="busybox:1",
    command=("true",),
    env={},
    working_dir="/mnt",
    volume="",
    user="0:0",
    network="none",
    cpus=1.0,
    memory_bytes=16_000_000,
    pids_limit=10,
)


async def _enter_watch(engine: DockerEngine) -> None:
    async with engine.watch_exit("x"):
        pass


async def _drain(stream: AsyncIterator[object]) -> list[object]:
    return [item async for item in stream]


CALLS: dict[str, Callable[[DockerEngine], Awaitable[object]]] = {
    "facts": lambda e: e.facts(),
    "inspect_image": lambda e: e.inspect_image("busybox:1"),
    "tag_image": lambda e: e.tag_image("busybox:1", "busybox:2"),
    "remove_image": lambda e: e.remove_image("busybox:1"),
    "list_images": lambda e: e.list_images(),
    "create_overlay_volume": lambda e: e.create_overlay_volume(
        "v", lower=[Path("/l")], upper=Path("/u"), work=Path("/w"), labels={}
    ),
    "create_bind_volume": lambda e: e.create_bind_volume("v", directory=Path("/d"), labels={}),
    "remove_volume": lambda e: e.remove_volume("v"),
    "list_volumes": lambda e: e.list_volumes({"a": "b"}),
    "create_container": lambda e: e.create_container(SPEC),
    "watch_exit": _enter_watch,
    "start_container": lambda e: e.start_container("x"),
    "inspect_container": lambda e: e.inspect_container("x"),
    "signal_container": lambda e: e.signal_container("x", "SIGTERM"),
    "remove_container": lambda e: e.remove_container("x"),
    "list_containers": lambda e: e.list_containers({"a": "b"}),
    "pull_image": lambda e: _drain(e.pull_image("busybox:1")),
    "push_image": lambda e: _drain(e.push_image("busybox:1")),
    "build_image": lambda e: _drain(e.build_image(BuildSpec(tag="a:1", dockerfile="FROM b"))),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@asynccontextmanager
async def _engine(
    url: str, deadline_seconds: float = DEADLINE_SECONDS
) -> AsyncIterator[DockerEngine]:
    engine = DockerEngine(url=url, deadline_seconds=deadline_seconds)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def _served(
    tmp_path: Path, handler: Handler, deadline_seconds: float = PATIENT_SECONDS
) -> AsyncIterator[DockerEngine]:
    async with (
        engine_socket(tmp_path / "s", handler) as url,
        _engine(url, deadline_seconds) as engine,
    ):
        yield engine


async def _fault(call: Awaitable[object]) -> Fault:
    with pytest.raises(FaultError) as caught:
        await call
    return caught.value.fault


@EVERY_CALL
async def test_a_socket_that_is_not_there(
    call: Callable[[DockerEngine], Awaitable[object]], tmp_path: Path
) -> None:
    async with _engine(f"unix://{tmp_path}/none") as engine:
        fault = await _fault(call(engine))
    assert fault.reason is Reason.ENGINE_UNAVAILABLE
    assert "none" in fault.detail


@EVERY_CALL
async def test_an_engine_that_hangs_costs_a_deadline_and_no_more(
    call: Callable[[DockerEngine], Awaitable[object]], tmp_path: Path
) -> None:
    async with _served(tmp_path, never_answers, DEADLINE_SECONDS) as engine:
        began = time.monotonic()
        fault = await _fault(call(engine))
    assert fault.reason is Reason.ENGINE_UNAVAILABLE
    assert "in time" in fault.detail
    assert time.monotonic() - began < PATIENT_SECONDS / 2


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"watch_exit", "remove_volume"}))
async def test_a_reply_that_is_cut_in_the_middle(name: str, tmp_path: Path) -> None:
    """The two that are left out need no more than the status."""
    async with _served(tmp_path, answers('{"ApiVersion": "1.41', promised=5000)) as engine:
        fault = await _fault(CALLS[name](engine))
    assert fault.reason is Reason.ENGINE_UNAVAILABLE


@pytest.mark.parametrize("body", ["", "[]", "{}", "nonsense", "null", '{"State": 3}', "\udcff"])
async def test_a_reply_that_makes_no_sense(tmp_path: Path, body: str) -> None:
    async def handler(
        _head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        data = body.encode("utf-8", "surrogateescape")
        is_version = b"/version" in _head.split(b"\r\n")[0]
        data = b'{"ApiVersion": "1.41"}' if is_version else data
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        writer.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()

    async with _served(tmp_path, handler) as engine:
        fault = await _fault(engine.inspect_container("x"))
    assert fault.reason is Reason.ENGINE_UNAVAILABLE


async def test_a_pull_that_ends_early_without_an_error_has_not_succeeded(tmp_path: Path) -> None:
    line = b'{"status":"Pulling fs layer","id":"abc","progressDetail":{}}\n'
    for ends in (True, False):
        async with _served(tmp_path, streams(line, ends=ends)) as engine:
            fault = await _fault(_drain(engine.pull_image("busybox:1")))
        assert fault.reason is Reason.ENGINE_UNAVAILABLE


async def test_a_build_that_ends_early_without_an_error_has_not_succeeded(tmp_path: Path) -> None:
    line = b'{"stream":"Step 1/2 : FROM busybox"}\n'
    for ends in (True, False):
        async with _served(tmp_path, streams(line, ends=ends)) as engine:
            spec = BuildSpec(tag="a:1", dockerfile="FROM busybox")
            fault = await _fault(_drain(engine.build_image(spec)))
        assert fault.reason is Reason.ENGINE_UNAVAILABLE


async def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    pieces = [b"x" * 1_000_000] * 8
    async with _served(tmp_path, streams(*pieces, ends=True)) as engine:
        fault = await _fault(_drain(engine.pull_image("busybox:1")))
    assert fault.reason is Reason.ENGINE_UNAVAILABLE
    assert "no end" in fault.detail


async def test_a_slow_stream_is_waited_for_while_the_engine_answers_pings(tmp_path: Path) -> None:
    async def handler(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if b"_ping" in head:
            await answers("{}")(head, reader, writer)
            return
        await asyncio.sleep(1.2)
        await streams(b'{"stream":"Step 1/1 : FROM b"}\n{"aux":{"ID":"sha256:1"}}\n', ends=True)(
            head, reader, writer
        )

    async with _served(tmp_path, handler, 0.5) as engine:
        steps = await _drain(engine.build_image(BuildSpec(tag="a:1", dockerfile="FROM b")))
    assert len(steps) == 1


async def test_closing_a_build_closes_its_connection(tmp_path: Path) -> None:
    hung_up = asyncio.Event()

    async def handler(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        line = b'{"stream":"Step 1/2 : FROM b"}\n'
        writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        await writer.drain()
        while await reader.read(65536):
            pass
        hung_up.set()

    async with (
        _served(tmp_path, handler) as engine,
        aclosing(engine.build_image(BuildSpec(tag="a:1", dockerfile="FROM b"))) as steps,
    ):
        await anext(steps)
        await steps.aclose()
        async with asyncio.timeout(2):
            await hung_up.wait()


async def test_a_cancelled_pull_closes_its_connection(tmp_path: Path) -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def handler(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        asked.set()
        while await reader.read(65536):
            pass
        hung_up.set()

    async with _served(tmp_path, handler) as engine:
        pulling = asyncio.create_task(_drain(engine.pull_image("busybox:1")))
        await asked.wait()
        pulling.cancel()
        async with asyncio.timeout(2):
            await hung_up.wait()
            await asyncio.wait([pulling])
    assert pulling.cancelled()


async def test_a_watch_ends_when_the_engine_dies(tmp_path: Path) -> None:
    async def handler(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if b"/wait" in head.split(b"\r\n")[0]:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.2)
            return
        body = '{"ApiVersion":"1.41","Id":"x","Name":"/x","State":{"Status":"running"}}'
        await answers(body)(head, reader, writer)

    async with (
        _served(tmp_path, handler) as engine,
        engine.watch_exit("x") as ended,
        asyncio.timeout(2),
    ):
        await ended()


async def test_many_watches_at_once_leave_room_for_short_calls(tmp_path: Path) -> None:
    waits = 0

    async def handler(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal waits
        if b"/wait" in head.split(b"\r\n")[0]:
            waits += 1
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(3600)
        body = '{"ApiVersion":"1.41","Id":"x","Name":"/x","State":{"Status":"running"}}'
        await answers(body)(head, reader, writer)

    async with _served(tmp_path, handler) as engine:
        watching = [asyncio.create_task(_watch(engine)) for _ in range(150)]
        async with asyncio.timeout(10):
            while waits < 150:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await engine.inspect_container("x") is not None
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)


async def _watch(engine: DockerEngine) -> None:
    async with engine.watch_exit("x") as ended:
        await ended()


# -- the breaker -------------------------------------------------------------------------------


async def test_after_some_time_outs_calls_fail_at_once_until_the_engine_answers(
    tmp_path: Path,
) -> None:
    hangs = True
    asked = 0

    async def handler(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal asked
        asked += b"_ping" not in head
        if hangs:
            await asyncio.sleep(3600)
        body = '{"ApiVersion":"1.41","Id":"x","Name":"/x","State":{"Status":"running"}}'
        await answers(body)(head, reader, writer)

    async with _served(tmp_path, handler, 0.5) as engine:
        for _ in range(3):
            await _fault(engine.inspect_container("x"))
        assert asked == 3
        for call in CALLS.values():
            assert (await _fault(call(engine))).reason is Reason.ENGINE_UNAVAILABLE
        assert asked == 3
        hangs = False
        async with asyncio.timeout(PATIENT_SECONDS):
            while not await _answers(engine):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def _answers(engine: DockerEngine) -> bool:
    try:
        return await engine.inspect_container("x") is not None
    except FaultError:
        return False


async def test_errors_that_the_engine_answers_with_do_not_open_the_breaker(tmp_path: Path) -> None:
    broken = answers('{"message":"out of order"}', status="500 Internal Server Error")
    async with _served(tmp_path, broken) as engine:
        for _ in range(10):
            fault = await _fault(engine.inspect_container("x"))
            assert fault.reason is Reason.ENGINE_REFUSED
            assert fault.evidence["engine_message"] == "out of order"


async def test_closing_while_the_breaker_is_open_leaves_no_task(tmp_path: Path) -> None:
    before = len(asyncio.all_tasks())
    async with engine_socket(tmp_path / "s", never_answers) as url:
        async with _engine(url) as engine:
            for _ in range(3):
                await _fault(engine.inspect_container("x"))
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert "engine-breaker" not in names
    assert len(asyncio.all_tasks()) <= before

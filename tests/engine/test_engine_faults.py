"""A real engine behind a proxy that loses its replies: what was done is found again."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.engine.docker import DockerEngine
from tests.fakes.engine_bench import RealBench, real_bench
from tests.fakes.engine_socket import EngineProxy


@pytest.fixture
async def bench() -> AsyncIterator[RealBench]:
    async with real_bench() as bench:
        yield bench


@pytest.fixture
def proxy(bench: RealBench) -> EngineProxy:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        pytest.skip("the engine is not on a Unix socket")
    return EngineProxy(host.removeprefix("unix://"))


@pytest.fixture
async def engine(proxy: EngineProxy, tmp_path: Path) -> AsyncIterator[DockerEngine]:
    async with proxy.listen(tmp_path / "proxy.sock") as url:
        engine = DockerEngine(url=url, deadline_seconds=20)
        await engine.open()
        yield engine
        await engine.close()


async def test_a_container_whose_creation_was_not_confirmed_is_adopted(
    bench: RealBench, proxy: EngineProxy, engine: DockerEngine
) -> None:
    proxy.lost = ["/containers/create"]
    container = await engine.create_container(bench.spec("nothing"))
    assert [c.id for c in await bench.engine.list_containers(bench.labels)] == [container]
    assert sum("/containers/create" in request for request in proxy.seen) == 1


async def test_a_start_that_was_not_confirmed_has_still_started_once(
    bench: RealBench, proxy: EngineProxy, engine: DockerEngine
) -> None:
    container = await engine.create_container(bench.spec("greets"))
    proxy.lost = ["/start"]
    async with engine.watch_exit(container) as ended:
        with pytest.raises(FaultError) as caught:
            await engine.start_container(container)
        assert caught.value.fault.reason is Reason.ENGINE_UNAVAILABLE
        await engine.start_container(container)
        async with asyncio.timeout(10):
            await ended()
    facts = await engine.inspect_container(container)
    assert facts is not None
    assert facts.exit_code == 0
    log = await asyncio.to_thread(Path(facts.log_path).read_text)
    assert log.count("hello") == 1


async def test_a_removal_that_was_not_confirmed_may_be_repeated(
    bench: RealBench, proxy: EngineProxy, engine: DockerEngine
) -> None:
    container = await engine.create_container(bench.spec("nothing"))
    proxy.lost = ["DELETE ", "DELETE "]
    with pytest.raises(FaultError) as caught:
        await engine.remove_container(container)
    assert caught.value.fault.reason is Reason.ENGINE_UNAVAILABLE
    await engine.remove_container(container)
    assert await bench.engine.inspect_container(container) is None


async def test_a_watch_whose_reply_is_lost_ends_and_inspect_knows(
    bench: RealBench, proxy: EngineProxy, engine: DockerEngine
) -> None:
    container = await engine.create_container(bench.spec("sleeps"))
    await engine.start_container(container)
    proxy.lost = ["/wait"]
    with pytest.raises(FaultError) as caught:
        async with engine.watch_exit(container):
            pass
    assert caught.value.fault.reason is Reason.ENGINE_UNAVAILABLE
    facts = await engine.inspect_container(container)
    assert facts is not None
    assert facts.state == "running"


async def test_the_defaults_hold_inside_the_container(bench: RealBench) -> None:
    script = (
        "grep -E 'CapEff|NoNewPrivs' /proc/self/status; ulimit -n; ulimit -c;"
        " df -k /dev/shm | tail -1; echo $GREETING; pwd"
    )
    inside = bench.spec("nothing", command=("sh", "-c", script))
    container = await bench.engine.create_container(inside)
    async with bench.engine.watch_exit(container) as ended:
        await bench.engine.start_container(container)
        await ended()
    facts = await bench.engine.inspect_container(container)
    assert facts is not None
    log = await asyncio.to_thread(Path(facts.log_path).read_text)
    said = [json.loads(line)["log"].split() for line in log.splitlines()]
    assert ["CapEff:", "0000000000000000"] in said
    assert ["NoNewPrivs:", "1"] in said
    assert said[2:4] == [["16384"], ["0"]]
    assert said[4][1] == "65536"
    assert said[5:] == [["hello"], ["/mnt"]]

"""Known loads in real containers, and what the meters say of them."""

import asyncio
import json
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from executord.usage.sampler import Samplers
from tests.fakes.plain_containers import PYTHON, PlainContainer, container, engine_or_skip
from tests.setup.docker_http import EngineHttp

MIB = 1 << 20
HALF_A_CORE = """
import time
slice_seconds = 0.02
began = time.monotonic()
end = began + 4.0
while time.monotonic() < end:
    until = time.process_time() + slice_seconds / 2
    begin = time.monotonic()
    while time.process_time() < until:
        pass
    time.sleep(max(0, begin + slice_seconds - time.monotonic()))
print(time.process_time(), time.monotonic() - began)
"""
FIFTY_MEGABYTES = """
import time
print("before", flush=True)
time.sleep(1.5)
block = bytearray(50_000_000)
block[::4096] = b"x" * len(block[::4096])
time.sleep(2)
"""


@pytest.fixture(scope="module")
def engine() -> EngineHttp:
    return engine_or_skip()


@pytest.fixture
async def meters(engine: EngineHttp) -> AsyncIterator[Samplers]:
    info = engine.get("/info")
    made = Samplers(
        interval_seconds=0.25,
        cgroup_driver=info["CgroupDriver"],
        cgroup_version=int(info.get("CgroupVersion", "1")),
        instance=f"test{uuid.uuid4().hex[:8]}",
    )
    await made.open()
    yield made
    await made.close()
    assert not list(made._hierarchy.everywhere(made._own_path("any").rpartition("/")[0]))


async def in_thread(call: Callable[[], None]) -> None:
    await asyncio.to_thread(call)


def told_by(made: PlainContainer) -> tuple[float, float]:
    """What the program itself says it used: on a busy machine it gets less than it asks for."""
    line = Path(made.inspect()["LogPath"]).read_text().splitlines()[-1]
    used, seconds = json.loads(line)["log"].split()
    return float(used), float(seconds)


async def test_about_half_a_core_is_measured_as_what_it_was(
    engine: EngineHttp, meters: Samplers
) -> None:
    parent = meters.cgroup_parent("half")
    with container(
        engine, "python3", "-c", HALF_A_CORE, image=PYTHON, cgroup_parent=parent
    ) as made:
        await in_thread(made.start)
        await meters.start("half", made.pid)
        await in_thread(made.wait)
        summary = await meters.finish("half")
        used, seconds = await asyncio.to_thread(told_by, made)
        cores = [sample.cpu_cores for sample in meters.samples("half", 0)][3:-1]
    await meters.release("half")
    assert summary is not None
    assert summary.cpu_seconds == pytest.approx(used, rel=0.05)
    assert statistics.median(cores) == pytest.approx(used / seconds, rel=0.15)
    assert summary.cpu_cores_average == pytest.approx(used / seconds, rel=0.15)
    assert summary.samples >= 12


async def test_fifty_megabytes_are_seen_as_fifty_megabytes(
    engine: EngineHttp, meters: Samplers
) -> None:
    parent = meters.cgroup_parent("memory")
    with container(
        engine, "python3", "-c", FIFTY_MEGABYTES, image=PYTHON, cgroup_parent=parent
    ) as made:
        await in_thread(made.start)
        await meters.start("memory", made.pid)
        await in_thread(made.wait)
        summary = await meters.finish("memory")
        used = [sample.memory_bytes for sample in meters.samples("memory", 0)]
        last = meters.latest("memory")
    await meters.release("memory")
    grown = statistics.median(used[-5:]) - statistics.median(used[1:4])
    assert grown == pytest.approx(50_000_000, rel=0.1)
    assert last is not None
    assert last.memory_limit_bytes == 256 * MIB
    assert summary is not None
    assert 50_000_000 < summary.memory_peak_bytes < 120_000_000
    assert summary.oom_kills == 0


async def test_a_run_that_is_over_before_it_was_watched_still_has_its_totals(
    engine: EngineHttp, meters: Samplers
) -> None:
    burn = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    parent = meters.cgroup_parent("short")
    with container(engine, "/bin/sh", "-c", burn, cgroup_parent=parent) as made:
        await in_thread(made.start)
        await in_thread(made.wait)
    summary = await meters.finish("short")
    assert summary is not None
    assert 0.01 < summary.cpu_seconds < 2
    assert summary.memory_peak_bytes > 500_000
    assert summary.oom_kills in ((0,) if meters._version == 2 else (None,))
    assert meters.record("short") is not None
    assert await meters.finish("short") == summary
    await meters.release("short")


async def test_an_out_of_memory_kill_is_counted(engine: EngineHttp, meters: Samplers) -> None:
    parent = meters.cgroup_parent("oom")
    hog = "import time; time.sleep(0.3); block = bytearray(b'x' * 200_000_000)"
    with container(
        engine,
        "python3",
        *("-c", hog),
        image=PYTHON,
        cgroup_parent=parent,
        memory_bytes=40 * MIB,
    ) as made:
        await in_thread(made.start)
        await meters.start("oom", made.pid)
        await in_thread(made.wait)
        summary = await meters.finish("oom")
        assert made.facts().exit_code == 137
    await meters.release("oom")
    assert summary is not None
    assert summary.oom_kills
    assert summary.memory_peak_bytes == pytest.approx(40 * MIB, rel=0.2)


async def test_written_bytes_are_counted_although_they_are_buffered(
    engine: EngineHttp, meters: Samplers
) -> None:
    parent = meters.cgroup_parent("disk")
    write = "sleep 0.3; dd if=/dev/zero of=/file bs=1M count=30 2>/dev/null; sleep 0.6"
    with container(engine, "/bin/sh", "-c", write, cgroup_parent=parent) as made:
        await in_thread(made.start)
        await meters.start("disk", made.pid)
        await in_thread(made.wait)
        summary = await meters.finish("disk")
    await meters.release("disk")
    assert summary is not None
    assert summary.written_bytes == pytest.approx(30 * MIB, rel=0.1)


async def test_sampling_goes_on_after_a_restart_with_the_totals_of_the_whole_run(
    engine: EngineHttp, meters: Samplers
) -> None:
    parent = meters.cgroup_parent("long")
    with container(
        engine, "python3", "-c", HALF_A_CORE, image=PYTHON, cgroup_parent=parent
    ) as made:
        began = time.time()
        await in_thread(made.start)
        await meters.start("long", made.pid)
        await asyncio.sleep(1.5)
        before = meters.latest("long")
        await meters.close()

        again = Samplers(
            interval_seconds=0.25,
            cgroup_driver=meters._driver,
            cgroup_version=meters._version,
            instance=meters._instance,
        )
        await again.open()
        await again.start("long", made.pid)
        await in_thread(made.wait)
        summary = await again.finish("long")
        await again.release("long")
        await again.close()
    assert before is not None
    assert before.cpu_seconds > 0.5
    assert summary is not None
    assert summary.cpu_seconds > before.cpu_seconds + 0.5
    assert summary.seconds == pytest.approx(time.time() - began, abs=1.0)


async def test_a_stranger_that_has_the_old_process_id_is_not_measured(
    engine: EngineHttp, meters: Samplers
) -> None:
    with (
        container(engine, "true", cgroup_parent=meters.cgroup_parent("gone")) as gone,
        container(engine, "sleep", "5", cgroup_parent=meters.cgroup_parent("stranger")) as stranger,
    ):
        await in_thread(gone.start)
        await in_thread(gone.wait)
        await in_thread(stranger.start)
        await meters.start("gone", stranger.pid)
        sample = meters.latest("gone")
        assert sample is not None
        assert sample.memory_limit_bytes is None
        assert sample.network_received_bytes is None
        await meters.finish("gone")
    for run_id in ("gone", "stranger"):
        await meters.release(run_id)


async def test_the_hosts_own_network_is_not_taken_for_the_runs(
    engine: EngineHttp, meters: Samplers
) -> None:
    for network, known in (("none", True), ("host", False)):
        parent = meters.cgroup_parent(network)
        with container(engine, "sleep", "5", network=network, cgroup_parent=parent) as made:
            await in_thread(made.start)
            await meters.start(network, made.pid)
            sample = meters.latest(network)
            assert sample is not None
            assert (sample.network_received_bytes is not None) is known
            assert sample.pids in (2, 3)
        await meters.release(network)


async def test_a_released_group_is_gone_from_every_hierarchy(
    engine: EngineHttp, meters: Samplers
) -> None:
    parent = meters.cgroup_parent("brief")
    with container(engine, "true", cgroup_parent=parent) as made:
        await in_thread(made.start)
        await in_thread(made.wait)
        left = list(meters._hierarchy.everywhere(meters._own_path("brief")))
        assert left
    await meters.release("brief")
    assert not any(path.exists() for path in left)
    assert await meters.finish("brief") is None
    await meters.release("brief")

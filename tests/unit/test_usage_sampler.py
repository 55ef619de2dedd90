import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executord.core.reasons import FaultError
from executord.usage.sampler import Samplers
from tests.fakes.cgroups import Host

GROUP = "executord-n/r-1"


def cpu(seconds: float) -> bytes:
    return b"usage_usec %d\n" % round(seconds * 1_000_000)


class Container:
    """A real process that stands for a container's first one, with counters of our making."""

    def __init__(self, host: Host, process: asyncio.subprocess.Process) -> None:
        self._host = host
        self._process = process
        self.pid = process.pid
        host.process(self.pid, f"{GROUP}/c1")
        host.group(f"{GROUP}/c1", memory__max=b"1048576\n")
        self.use(0.1)

    def use(self, cpu_seconds: float, *, oom_kills: int = 0, peak: int = 5000) -> None:
        self._host.group(
            GROUP,
            cpu__stat=cpu(cpu_seconds),
            memory__current=b"4000\n",
            memory__peak=b"%d\n" % peak,
            memory__events=b"oom_kill %d\n" % oom_kills,
        )

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, version=2)


@pytest.fixture
async def meters(host: Host) -> AsyncIterator[Samplers]:
    made = Samplers(
        interval_seconds=0.05,
        cgroup_driver="cgroupfs",
        cgroup_version=2,
        instance="n",
        proc=host.proc,
        removal_seconds=0,  # files of a temporary directory do not go with their directory
    )
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def container(host: Host) -> AsyncIterator[Container]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(60)", stdin=subprocess.DEVNULL
    )
    made = Container(host, process)
    yield made
    await made.end()


async def test_samples_are_taken_until_the_process_ends(
    meters: Samplers, container: Container
) -> None:
    await meters.start("r-1", container.pid)
    await asyncio.sleep(0.3)
    taken = len(meters.samples("r-1", 0))
    assert 3 <= taken <= 8
    container.use(2.0, oom_kills=1, peak=9000)
    await container.end()
    await asyncio.sleep(0.2)
    assert len(meters.samples("r-1", 0)) <= taken + 1
    summary = await meters.finish("r-1")
    assert summary is not None
    assert (summary.cpu_seconds, summary.oom_kills, summary.memory_peak_bytes) == (2.0, 1, 9000)
    assert summary.memory_average_bytes == 4000


async def test_the_end_is_counted_before_the_engine_takes_the_group_away(
    meters: Samplers, container: Container, host: Host
) -> None:
    await meters.start("r-1", container.pid)
    container.use(0.7)
    await container.end()
    await asyncio.sleep(0.1)
    for path in sorted((host.groups / GROUP).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    summary = await meters.finish("r-1")
    assert summary is not None
    assert summary.cpu_seconds == 0.7


async def test_starting_twice_is_starting_once(meters: Samplers, container: Container) -> None:
    await asyncio.gather(meters.start("r-1", container.pid), meters.start("r-1", container.pid))
    assert len(meters.samples("r-1", 0)) == 1


async def test_a_process_that_has_gone_leaves_the_totals_of_its_group(
    meters: Samplers, container: Container
) -> None:
    await container.end()
    container.use(0.4)
    await meters.start("r-1", 4_000_000)
    summary = await meters.finish("r-1")
    assert summary is not None
    assert summary.cpu_seconds == 0.4
    assert summary.seconds == 0.0


async def test_nothing_is_known_of_a_run_that_never_had_a_container(meters: Samplers) -> None:
    assert await meters.finish("r-9") is None
    assert meters.record("r-9") is None
    assert meters.latest("r-9") is None
    assert list(meters.samples("r-9", 0)) == []
    await meters.release("r-9")


async def test_a_record_gives_the_samples_back_after_the_run_was_released(
    meters: Samplers, container: Container
) -> None:
    await meters.start("r-1", container.pid)
    await asyncio.sleep(0.2)
    await container.end()
    await meters.finish("r-1")
    kept = meters.record("r-1")
    samples = meters.samples("r-1", 0)
    await meters.release("r-1")
    assert meters.samples("r-1", 0) == samples
    for number in range(40):
        await meters.finish(f"other-{number}")
        await meters.release(f"other-{number}")
    assert meters.samples("r-1", 0) == ()
    restored = meters.restore(kept)
    assert [round(s.time, 3) for s in restored] == [round(s.time, 3) for s in samples]


async def test_a_host_that_does_not_tell_its_groups_is_a_fault(tmp_path: Path) -> None:
    meters = Samplers(
        interval_seconds=1,
        cgroup_driver="cgroupfs",
        cgroup_version=2,
        instance="n",
        proc=tmp_path / "nowhere",
    )
    with pytest.raises(FaultError):
        await meters.open()
    await meters.close()


async def test_no_descriptor_is_left_open(
    host: Host, meters: Samplers, container: Container
) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await meters.start("r-1", container.pid)
    await meters.release("r-1")
    before = descriptors()
    for _ in range(20):
        await meters.start("r-1", container.pid)
        await meters.finish("r-1")
        await meters.release("r-1")
        container.use(0.1)
        host.process(container.pid, f"{GROUP}/c1")
    assert descriptors() <= before

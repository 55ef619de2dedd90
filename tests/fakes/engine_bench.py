"""The same few programs, on the fake engine and on a real one, for suites that run on both."""

import asyncio
import contextlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from executord.core.reasons import Fault, FaultError, Reason
from executord.engine.docker import DockerEngine
from executord.ports import BuildSpec, BuildStep, ContainerFacts, ContainerSpec, Engine
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_images import RemoteImage
from tests.fakes.engine_programs import (
    SLEEPS_FOR_EVER,
    Process,
    Program,
    Script,
    code_of_signal,
)
from tests.fakes.registry import LoopbackRegistry

BUSYBOX = "executord-test/busybox:1"
MEBIBYTE = 1024 * 1024
_SEES_THE_LAYERS = (
    'cd /data && test "$(cat both.txt)" = top && test "$(cat below.txt)" = below '
    "&& ! touch new && ! rm below.txt"
)
LAYERED = {"both.txt": b"top\n", "below.txt": b"below\n"}


async def _sees_the_layers(process: Process) -> int:
    seen = {name: process.read_mounted("/data", name) for name in LAYERED}
    return 0 if seen == LAYERED else 1


# name: (what the real one executes, what the fake one does instead)
PROGRAMS: Mapping[str, tuple[tuple[str, ...], Program]] = {
    "nothing": (("true",), Script()),
    "fails with 3": (("sh", "-c", "exit 3"), Script(exit_code=3)),
    "greets": (
        ("sh", "-c", "echo hello; echo oops >&2"),
        Script(output=(b"hello\n",), errors=(b"oops\n",)),
    ),
    "sleeps": (("sleep", "600"), SLEEPS_FOR_EVER),
    "ignores SIGTERM": (
        ("sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"),
        replace(SLEEPS_FOR_EVER, ignores=frozenset({"SIGTERM"})),
    ),
    "eats memory": (
        ("tail", "/dev/zero"),
        Script(exit_code=code_of_signal("SIGKILL"), oom_killed=True),
    ),
    "writes made.txt": (
        ("sh", "-c", "echo data > made.txt"),
        Script(files={"made.txt": b"data\n"}),
    ),
    "sees the layers at /data, and cannot write there": (
        ("sh", "-c", _SEES_THE_LAYERS),
        _sees_the_layers,
    ),
    "is not there": (
        ("no-such-program", "--flag"),
        Script(exit_code=127, never_ran="exec no-such-program failed: No such file or directory"),
    ),
    "cannot be executed": (
        ("/etc/passwd",),
        Script(exit_code=126, never_ran="exec /etc/passwd failed: Permission denied"),
    ),
}


class Bench(ABC):
    """An engine, and the means to make things happen around it."""

    engine: Engine
    image: str = BUSYBOX

    def __init__(self) -> None:
        self.mark = secrets.token_hex(4)
        self.labels = {"executord.test": self.mark}

    def name(self, what: str = "run") -> str:
        return f"executord-test-{self.mark}-{what}"

    def spec(self, program: str, **changes: object) -> ContainerSpec:
        base = ContainerSpec(
            name=self.name(),
            image=self.image,
            command=PROGRAMS[program][0],
            env={"GREETING": "hello"},
            working_dir="/mnt",
            volume="",
            user="0:0",
            network="none",
            cpus=1.0,
            memory_bytes=64 * MEBIBYTE,
            pids_limit=64,
            labels=self.labels,
            log_max_bytes=MEBIBYTE,
        )
        return replace(base, **changes)  # type: ignore[arg-type]

    async def run(self, program: str, **changes: object) -> ContainerFacts:
        """Create, start, wait, inspect."""
        container = await self.engine.create_container(self.spec(program, **changes))
        async with self.engine.watch_exit(container) as ended:
            await self.engine.start_container(container)
            async with asyncio.timeout(20):
                await ended()
        facts = await self.engine.inspect_container(container)
        assert facts is not None
        return facts

    async def build(self, tag: str, instructions: str) -> list[BuildStep]:
        spec = BuildSpec(
            tag=tag,
            dockerfile=f"FROM {self.image}\nLABEL executord.test={self.mark}\n{instructions}",
            labels=self.labels,
        )
        return [step async for step in self.engine.build_image(spec)]

    @abstractmethod
    def publish(self, name: str, *, size_bytes: int) -> str:
        """Offer an image in a registry; gives its reference."""

    @abstractmethod
    def deny(self, name: str) -> str: ...

    @abstractmethod
    def unknown(self) -> str: ...

    @abstractmethod
    def unreachable(self) -> str: ...


class FakeBench(Bench):
    def __init__(self, root: Path) -> None:
        super().__init__()
        self.fake = FakeEngine(root=root, requires_volumes=True)
        self.engine = self.fake
        self.fake.images.add(BUSYBOX)
        for command, program in PROGRAMS.values():
            self.fake.program(command, program)

    def publish(self, name: str, *, size_bytes: int) -> str:
        self.fake.images.registry[f"registry/{name}:1"] = RemoteImage(layers=(10, size_bytes))
        return f"registry/{name}:1"

    def deny(self, name: str) -> str:
        denied = Fault(Reason.IMAGE_DENIED, "denied")
        self.fake.images.registry[f"registry/{name}:1"] = RemoteImage(fault=denied)
        return f"registry/{name}:1"

    def unknown(self) -> str:
        return "registry/unknown:1"

    def unreachable(self) -> str:
        self.fake.images.registry_is_down = True
        return "elsewhere/image:1"


class RealBench(Bench):
    def __init__(self, registry: LoopbackRegistry) -> None:
        super().__init__()
        self.docker = DockerEngine(url="", deadline_seconds=30)
        self.engine = self.docker
        self.registry = registry

    def publish(self, name: str, *, size_bytes: int) -> str:
        return self.registry.publish(f"{self.mark}/{name}", layer_bytes=(10, size_bytes))

    def deny(self, name: str) -> str:
        self.registry.denied.add(f"{self.mark}/{name}")
        return self.registry.reference(f"{self.mark}/{name}")

    def unknown(self) -> str:
        return self.registry.reference(f"{self.mark}/unknown")

    def unreachable(self) -> str:
        return "127.0.0.1:9/image:1"

    async def sweep(self) -> None:
        """Leave nothing of this bench behind."""
        for container in await self.engine.list_containers(self.labels):
            await self.engine.remove_container(container.id)
        for volume in await self.engine.list_volumes(self.labels):
            await self.engine.remove_volume(volume)
        for image in await self.engine.list_images():
            is_ours = image.labels.get("executord.test") == self.mark
            is_ours = is_ours or image.id in self.registry.image_ids
            for name in image.tags or ((image.id,) if is_ours else ()):
                if is_ours or self.mark in name:
                    await self._remove_image(name)

    async def _remove_image(self, name: str) -> None:
        with contextlib.suppress(FaultError):
            await self.engine.remove_image(name)


def require_engine() -> None:
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        pytest.skip("no container engine: set DOCKER_HOST, or use `make test`")


@asynccontextmanager
async def fake_bench(root: Path) -> AsyncIterator[FakeBench]:
    bench = FakeBench(root)
    try:
        yield bench
    finally:
        await bench.fake.close()


@asynccontextmanager
async def real_bench() -> AsyncIterator[RealBench]:
    require_engine()
    registry = LoopbackRegistry()
    await registry.open()
    bench = RealBench(registry)
    await bench.docker.open()
    try:
        yield bench
    finally:
        await bench.sweep()
        await bench.docker.close()
        await registry.close()

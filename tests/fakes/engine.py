"""A container engine in memory that behaves like the real one, and can be made to misbehave.

The contract suite holds it to what the real engine does (`tests/contracts`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from executord.core.reasons import Fault, FaultError, Reason
from executord.engine.address import checked_reference
from executord.ports import (
    BuildSpec,
    BuildStep,
    ContainerFacts,
    ContainerSpec,
    EngineFacts,
    ImageFacts,
    Progress,
)
from tests.fakes.engine_containers import FakeContainer
from tests.fakes.engine_images import FakeImages, RemoteImage, digest_of, with_tag
from tests.fakes.engine_programs import FakeVolume, Process, Program, Script, code_of_signal

UNAVAILABLE = Fault(Reason.ENGINE_UNAVAILABLE, "The container engine does not answer.")
_FIRST_PID = 5_000_000  # above any kernel's pid_max: nobody's process


class FakeEngine:
    """Implements ports.Engine. Programs are found by the container's command, whole or first word.

    `root` is where logs are written; without it there are none. With `requires_volumes` a
    container's volume has to be there, as with the real one. `starts` counts how often each
    container name really began to execute; `calls` counts calls by method.
    """

    def __init__(
        self,
        *,
        root: Path | None = None,
        deadline_seconds: float = 0.2,
        requires_volumes: bool = False,
    ) -> None:
        self.images = FakeImages()
        self.volumes: dict[str, FakeVolume] = {}
        self.containers: dict[str, FakeContainer] = {}
        self.starts: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.signals: list[tuple[str, str]] = []
        self.default_program: Program = Script()
        self.live_restore = True
        self._root = root
        self._requires_volumes = requires_volumes
        self._deadline_seconds = deadline_seconds
        self._programs: dict[tuple[str, ...], Program] = {}
        self._answers = asyncio.Event()
        self._answers.set()
        self._failures: dict[str, list[Fault]] = {}
        self._lost_replies: Counter[str] = Counter()
        self._gates: dict[str, asyncio.Event] = {}
        self._made = 0

    # -- what a test sets ----------------------------------------------------------------------

    def program(self, command: Sequence[str], program: Program) -> None:
        """What a container with this command (or with this first word) does."""
        self._programs[tuple(command)] = program

    def hang(self) -> None:
        """Answer nothing any more: every call ends at its deadline."""
        self._answers.clear()

    def answer_again(self) -> None:
        self._answers.set()

    def fail_next(self, method: str, fault: Fault, *, times: int = 1) -> None:
        """Refuse the next calls of a method; they have no effect."""
        self._failures.setdefault(method, []).extend([fault] * times)

    def lose_reply_of(self, method: str, *, times: int = 1) -> None:
        """Carry out the next calls of a method, and tell nobody."""
        self._lost_replies[method] += times

    def hold(self, method: str) -> asyncio.Event:
        """Let calls of a method wait, before they have an effect, until the event is set."""
        self._gates[method] = asyncio.Event()
        return self._gates[method]

    async def restart(self, *, live_restore: bool) -> None:
        """Lose every open connection and, without live-restore, kill every container."""
        for container in self.containers.values():
            if not live_restore and container.state == "running":
                await self._end_process(container)
                self._ended(container, code_of_signal("SIGKILL"))
            self._wake(container)

    async def remove_by_a_stranger(self, container: str) -> None:
        await self._remove(self._container(container))

    async def kill_by_a_stranger(self, container: str, signal: str = "SIGKILL") -> None:
        await self._signal(self._container(container), signal)

    async def close(self) -> None:
        """End every program that still runs."""
        for container in self.containers.values():
            await self._end_process(container)

    # -- engine --------------------------------------------------------------------------------

    async def facts(self) -> EngineFacts:
        async with self._call("facts"):
            return EngineFacts(
                version="20.10.24",
                api_version="1.41",
                storage_driver="overlay2",
                cgroup_driver="cgroupfs",
                cgroup_version=1,
                live_restore=self.live_restore,
                architecture="x86_64",
                data_root=str(self._root or "/var/lib/docker"),
            )

    @asynccontextmanager
    async def _call(self, method: str) -> AsyncIterator[None]:
        self.calls[method] += 1
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self._answers.wait()
        except TimeoutError:
            raise FaultError(UNAVAILABLE) from None
        if gate := self._gates.get(method):
            await gate.wait()
        if failures := self._failures.get(method):
            raise FaultError(failures.pop(0))
        yield
        if self._lost_replies[method]:
            self._lost_replies[method] -= 1
            raise FaultError(UNAVAILABLE)

    # -- images --------------------------------------------------------------------------------

    async def inspect_image(self, reference: str) -> ImageFacts | None:
        checked_reference(reference)
        async with self._call("inspect_image"):
            return self.images.find(reference)

    async def pull_image(self, reference: str) -> AsyncGenerator[Progress, None]:
        async with self._call("pull_image"), aclosing(self.images.pull(reference)) as it:
            async for progress in it:
                yield progress

    async def build_image(self, spec: BuildSpec) -> AsyncGenerator[BuildStep, None]:
        async with self._call("build_image"), aclosing(self.images.build(spec)) as it:
            async for step in it:
                yield step

    async def push_image(self, reference: str) -> AsyncGenerator[Progress, None]:
        async with self._call("push_image"):
            image = self._image(reference)
            self.images.registry[reference] = RemoteImage(layers=(image.size_bytes,), id=image.id)
            size = image.size_bytes
            yield Progress(what="push", bytes_done=size, bytes_total=size)

    async def tag_image(self, image: str, reference: str) -> None:
        async with self._call("tag_image"):
            self.images.names[with_tag(reference)] = self._image(image).id

    async def remove_image(self, reference: str) -> None:
        async with self._call("remove_image"):
            self.images.remove(reference)

    async def list_images(self) -> Sequence[ImageFacts]:
        async with self._call("list_images"):
            return [self.images.facts_of(image_id) for image_id in self.images.by_id]

    def _image(self, reference: str) -> ImageFacts:
        image = self.images.find(reference)
        if image is None:
            raise FaultError(Fault(Reason.IMAGE_NOT_FOUND, f"Image `{reference}` is not here."))
        return image

    # -- volumes -------------------------------------------------------------------------------

    async def create_overlay_volume(
        self,
        name: str,
        *,
        lower: Sequence[Path],
        upper: Path,
        work: Path,
        labels: Mapping[str, str],
    ) -> None:
        async with self._call("create_overlay_volume"):
            made = FakeVolume(
                name=name, lower=tuple(lower), upper=upper, work=work, labels=dict(labels)
            )
            existing = self.volumes.get(name)
            if existing is not None and existing.labels != made.labels:
                raise FaultError(
                    Fault(Reason.ENGINE_REFUSED, f"Volume `{name}` is somebody else's.")
                )
            self.volumes[name] = made

    async def create_bind_volume(
        self, name: str, *, directory: Path, labels: Mapping[str, str]
    ) -> None:
        await self.create_overlay_volume(
            name, lower=(), upper=directory, work=Path("/nonexistent"), labels=labels
        )

    async def create_read_only_volume(
        self, name: str, *, lower: Sequence[Path], labels: Mapping[str, str]
    ) -> None:
        nowhere = Path("/nonexistent")
        if len(lower) < 2:
            raise FaultError(Fault(Reason.WORKSPACE_FAILED, f"{len(lower)} layers are too few."))
        await self.create_overlay_volume(
            name, lower=lower, upper=nowhere, work=nowhere, labels=labels
        )

    async def remove_volume(self, name: str) -> None:
        async with self._call("remove_volume"):
            users = [c.spec.name for c in self.containers.values() if name in _volumes(c.spec)]
            if name in self.volumes and users:
                raise FaultError(
                    Fault(Reason.ENGINE_REFUSED, f"Volume `{name}` is in use by `{users[0]}`.")
                )
            self.volumes.pop(name, None)

    async def list_volumes(self, labels: Mapping[str, str]) -> Sequence[str]:
        async with self._call("list_volumes"):
            return [v.name for v in self.volumes.values() if _has(v.labels, labels)]

    # -- containers ----------------------------------------------------------------------------

    async def create_container(self, spec: ContainerSpec) -> str:
        async with self._call("create_container"):
            existing = self._find(spec.name)
            if existing is not None:
                if not _has(existing.spec.labels, spec.labels):
                    raise FaultError(
                        Fault(Reason.ENGINE_REFUSED, f"`{spec.name}` is somebody else's container.")
                    )
                return existing.id
            self._image(spec.image)
            for volume in _volumes(spec):
                if self._requires_volumes and volume and volume not in self.volumes:
                    raise FaultError(Fault(Reason.WORKSPACE_FAILED, f"No volume `{volume}`."))
            self._made += 1
            container_id = digest_of(f"container {spec.name} {self._made}").removeprefix("sha256:")
            self.containers[container_id] = FakeContainer(
                id=container_id, spec=spec, log_path=self._new_log(container_id)
            )
            return container_id

    @asynccontextmanager
    async def watch_exit(self, container: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        async with self._call("watch_exit"):
            watched = self._find(container)
        over = asyncio.Event()
        if watched is not None:
            watched.watchers.add(over)

        async def wait() -> None:
            if watched is not None and watched.state not in ("exited", "dead"):
                await over.wait()

        try:
            yield wait
        finally:
            if watched is not None:
                watched.watchers.discard(over)

    async def start_container(self, container: str) -> None:
        async with self._call("start_container"):
            found = self._container(container)
            if found.state == "created":
                self._start(found)

    async def inspect_container(self, container: str) -> ContainerFacts | None:
        async with self._call("inspect_container"):
            found = self._find(container)
            return found.facts() if found else None

    async def signal_container(self, container: str, signal: str) -> None:
        async with self._call("signal_container"):
            found = self._find(container)
            if found is not None and found.state in ("running", "paused"):
                found.state = "running"  # a signal resumes it, as the real one does
                found.resumed.set()
                self.signals.append((found.spec.name, signal))
                await self._signal(found, signal)

    async def pause_container(self, container: str) -> bool:
        async with self._call("pause_container"):
            found = self._find(container)
            if found is not None and found.state == "running":
                found.state = "paused"
            return found is not None and found.state == "paused"

    async def unpause_container(self, container: str) -> None:
        async with self._call("unpause_container"):
            found = self._find(container)
            if found is not None and found.state == "paused":
                found.state = "running"
                found.resumed.set()

    async def remove_container(self, container: str) -> None:
        async with self._call("remove_container"):
            found = self._find(container)
            if found is not None:
                await self._remove(found)

    async def list_containers(self, labels: Mapping[str, str]) -> Sequence[ContainerFacts]:
        async with self._call("list_containers"):
            found = (c for c in self.containers.values() if _has(c.spec.labels, labels))
            return [c.facts() for c in found]

    # -- inside --------------------------------------------------------------------------------

    def _find(self, name_or_id: str) -> FakeContainer | None:
        named = (c for c in self.containers.values() if c.spec.name == name_or_id)
        return self.containers.get(name_or_id) or next(named, None)

    def _container(self, name_or_id: str) -> FakeContainer:
        found = self._find(name_or_id)
        if found is None:
            raise FaultError(
                Fault(Reason.CONTAINER_LOST, f"Container `{name_or_id}` does not exist.")
            )
        return found

    def _new_log(self, container_id: str) -> str:
        if self._root is None:
            return ""
        path = self._root / f"{container_id}-json.log"
        path.touch()
        return str(path)

    def _start(self, container: FakeContainer) -> None:
        self.starts[container.spec.name] += 1
        container.state = "running"
        container.pid = _FIRST_PID + self._made
        container.started_at = time.time()
        command = container.spec.command
        program = self._programs.get(command) or self._programs.get(command[:1])
        volume = self.volumes.get(container.spec.volume)
        mounted = {
            mount.target: self.volumes[mount.volume]
            for mount in container.spec.volumes
            if mount.volume in self.volumes
        }
        container.process = Process(container.spec, volume, container.log_path, mounted)
        running = self._run(container, container.process, program or self.default_program)
        container.task = asyncio.create_task(running)

    async def _run(self, container: FakeContainer, process: Process, program: Program) -> None:
        code = await program(process)
        while container.state == "paused":  # it ends once it is resumed
            container.resumed.clear()
            await container.resumed.wait()
        container.oom_killed = process.oom_killed
        container.error = process.never_ran
        if process.never_ran:
            container.started_at = None
        self._ended(container, code)

    def _ended(self, container: FakeContainer, code: int) -> None:
        container.state = "exited"
        container.pid = 0
        container.exit_code = code
        container.finished_at = time.time()
        self._wake(container)

    @staticmethod
    def _wake(container: FakeContainer) -> None:
        for watcher in container.watchers:
            watcher.set()

    async def _signal(self, container: FakeContainer, signal: str) -> None:
        handlers = container.process.handlers if container.process else {}
        if signal != "SIGKILL" and signal in handlers:
            handlers[signal]()
            return
        await self._end_process(container)
        self._ended(container, code_of_signal(signal))

    async def _remove(self, container: FakeContainer) -> None:
        await self._end_process(container)
        self.containers.pop(container.id, None)
        container.state = "dead"
        self._wake(container)
        _forget_log(container.log_path)

    @staticmethod
    async def _end_process(container: FakeContainer) -> None:
        if container.task is not None and not container.task.done():
            container.task.cancel()
            await asyncio.wait([container.task])


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return wanted.items() <= labels.items()


def _forget_log(path: str) -> None:
    if path:
        Path(path).unlink(missing_ok=True)


def _volumes(spec: ContainerSpec) -> tuple[str, ...]:
    return (spec.volume, *(mount.volume for mount in spec.volumes))

"""The container engine through Docker's API: the only module that knows its client library."""

import asyncio
import json
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from aiodocker import Docker, DockerError
from aiodocker.volumes import DockerVolume

from executord.core.reasons import Fault, FaultError, Reason
from executord.engine import errors, facts
from executord.engine.address import checked_name, checked_reference, parse_address, split_tag
from executord.engine.breaker import Breaker
from executord.engine.listing import all_of, by_labels
from executord.engine.spec import container_config
from executord.engine.transfers import Transfers
from executord.engine.volumes import VolumeCalls
from executord.engine.wire import StatusError, Wire
from executord.ports import (
    BuildSpec,
    BuildStep,
    ContainerFacts,
    ContainerSpec,
    EngineFacts,
    ImageFacts,
    Progress,
)

_POLL_SECONDS = 0.05
_INIT_CODES = (126, 127)
_LOG_HEADER_BYTES = 8

Translate = Callable[[str, int, str], FaultError]


@dataclass(frozen=True, slots=True)
class _Parts:
    wire: Wire
    docker: Docker
    breaker: Breaker


class DockerEngine(VolumeCalls):
    """Implements ports.Engine over a Docker-compatible API.

    `url` "" means DOCKER_HOST, or the usual socket; ValueError for what cannot be one.
    `deadline_seconds` holds for every call; pulls, builds and waits may take as long as they
    need while the engine answers pings.
    """

    def __init__(self, *, url: str, deadline_seconds: float) -> None:
        self._address = parse_address(url, os.environ)
        self._deadline_seconds = deadline_seconds
        self._opened: _Parts | None = None

    async def open(self) -> None:
        """Make ready to talk; nothing is said to the engine yet."""
        wire = Wire(self._address, deadline_seconds=self._deadline_seconds)
        docker = Docker(
            url="unix://localhost" if self._address.socket else self._address.base_url,
            connector=wire.calls.connector,
            session=wire.calls,
            timeout=wire.timeout,
        )
        self._opened = _Parts(wire, docker, Breaker(ping=wire.answers))

    async def close(self) -> None:
        if self._opened is None:
            return
        parts, self._opened = self._opened, None
        await parts.breaker.close()
        await parts.docker.close()
        await parts.wire.close()

    @property
    def _parts(self) -> _Parts:
        if self._opened is None:
            raise RuntimeError("the engine's client is not open")
        return self._opened

    @property
    def _wire(self) -> Wire:
        return self._parts.wire

    @property
    def _docker(self) -> Docker:
        return self._parts.docker

    @property
    def _transfers(self) -> Transfers:
        return Transfers(self._parts.wire, self._parts.breaker)

    @asynccontextmanager
    async def _asking(
        self, doing: str, translate: Translate = errors.of_reply
    ) -> AsyncIterator[None]:
        """Put a deadline on short calls, and turn whatever goes wrong into a fault."""
        breaker = self._parts.breaker
        breaker.check(doing)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                yield
        except (DockerError, StatusError) as error:
            breaker.answered()
            raise translate(doing, error.status, error.message) from error
        except TimeoutError as error:
            breaker.timed_out()
            raise errors.of_exception(doing, error) from error
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            raise errors.of_exception(doing, error) from error
        breaker.answered()

    async def facts(self) -> EngineFacts:
        async with self._asking("ask the engine about itself"):
            version = await self._docker.version()
            return facts.engine_facts(version, await self._docker.system.info())

    # -- images --------------------------------------------------------------------------------

    async def inspect_image(self, reference: str) -> ImageFacts | None:
        checked_reference(reference)
        async with self._asking(f"look up image `{reference}`"):
            try:
                return facts.image_facts(await self._docker.images.inspect(reference))
            except DockerError as error:
                if error.status in (400, 404):
                    return None
                raise

    async def pull_image(self, reference: str) -> AsyncGenerator[Progress, None]:
        async with aclosing(self._transfers.pull(reference)) as progresses:
            async for progress in progresses:
                yield progress
        if await self.inspect_image(reference) is None:
            raise errors.unavailable(
                f"pull image `{reference}`", "the engine ended the pull without the image."
            )

    def push_image(self, reference: str) -> AsyncGenerator[Progress, None]:
        return self._transfers.push(reference)

    def build_image(self, spec: BuildSpec) -> AsyncGenerator[BuildStep, None]:
        return self._transfers.build(spec)

    async def tag_image(self, image: str, reference: str) -> None:
        checked_reference(image)
        repository, tag = split_tag(checked_reference(reference))
        async with self._asking(f"name image `{image}` `{reference}`"):
            await self._docker.images.tag(image, repository, tag=tag)

    async def remove_image(self, reference: str) -> None:
        checked_reference(reference)
        async with self._asking(f"remove image `{reference}`"):
            try:
                await self._docker.images.delete(reference)
            except DockerError as error:
                if error.status != 404:
                    raise

    async def list_images(self) -> Sequence[ImageFacts]:
        async with self._asking("list images"):
            ids = [str(image["Id"]) for image in await self._docker.images.list()]
        found = await all_of(self.inspect_image, ids)
        return [image for image in found if image is not None]

    # -- volumes -------------------------------------------------------------------------------

    async def list_volumes(self, labels: Mapping[str, str]) -> Sequence[str]:
        async with self._asking("list volumes"):
            volumes: Any = self._docker.volumes
            reply = await volumes.list(filters=by_labels(labels))
            return [str(volume["Name"]) for volume in reply.get("Volumes") or ()]

    # -- containers ----------------------------------------------------------------------------

    async def create_container(self, spec: ContainerSpec) -> str:
        checked_name(spec.name)
        checked_reference(spec.image)
        for volume in (spec.volume, *(mount.volume for mount in spec.volumes)):
            if volume:
                await self._require_volume(volume)
        made = await self._create_or_adopt(spec)
        if spec.volume:
            await self._require_volume(spec.volume)  # in use now: what it is, it stays
        return made

    async def _create_or_adopt(self, spec: ContainerSpec) -> str:
        try:
            return await self._create(spec)
        except FaultError as error:
            hangs = isinstance(error.__cause__, TimeoutError)
            if error.fault.reason is not Reason.ENGINE_UNAVAILABLE or hangs:
                raise
            # The engine may have made it and lost only the answer.
            adopted = await self._adopt(spec)
            if adopted is None:
                raise
            return adopted

    async def _require_volume(self, name: str) -> None:
        """Refuse to go on without the volume, or with an empty one: the engine quietly makes that
        where there is none, and it mounts nothing.
        """
        async with self._asking(f"look up volume `{name}`"):
            try:
                # its constructor is untyped, and the only way that asks just once
                found = await DockerVolume(self._docker, checked_name(name)).show()  # type: ignore[no-untyped-call]
            except DockerError as error:
                if error.status != 404:
                    raise
                found = None
        if found is None:
            raise FaultError(Fault(Reason.WORKSPACE_FAILED, f"The run's volume `{name}` is gone."))
        if not found.get("Options"):
            raise FaultError(
                Fault(
                    Reason.WORKSPACE_FAILED,
                    f"The run's volume `{name}` was removed, and an empty one took its place.",
                )
            )

    async def _create(self, spec: ContainerSpec) -> str:
        config = container_config(spec)
        async with self._asking(f"make container `{spec.name}`", errors.of_create):
            try:
                made = await self._docker.containers.create(config, name=spec.name)
                return str(made.id)
            except DockerError as error:
                if error.status != 409:
                    raise
                conflict = error
        adopted = await self._adopt(spec)
        if adopted is None:
            raise errors.of_reply(f"make container `{spec.name}`", 409, conflict.message)
        return adopted

    async def _adopt(self, spec: ContainerSpec) -> str | None:
        """The id of the container that this very spec has been made into before."""
        existing = await self.inspect_container(spec.name)
        if existing is None:
            return None
        if not spec.labels.items() <= existing.labels.items():
            raise errors.refused(
                f"make container `{spec.name}`", "there is one of this name that is not this run's."
            )
        return existing.id

    @asynccontextmanager
    async def watch_exit(self, container: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        reply = await self._register_wait(checked_name(container))

        async def wait() -> None:
            if reply is None or await self._has_ended(container):
                return
            try:
                await reply.read()
            except (aiohttp.ClientError, OSError):
                return

        try:
            yield wait
        finally:
            if reply is not None:
                reply.close()

    async def _register_wait(self, container: str) -> aiohttp.ClientResponse | None:
        """Its headers come once the engine has registered it; None where nothing will ever end."""
        async with self._asking(f"watch container `{container}`"):
            try:
                return await self._wire.begin(
                    f"containers/{container}/wait", params={"condition": "next-exit"}
                )
            except StatusError as error:
                if error.status == 404:
                    return None
                raise

    async def _has_ended(self, container: str) -> bool:
        """Also true where nobody knows: an exit before the registration is never told again."""
        try:
            now = await self.inspect_container(container)
        except FaultError:
            return True
        return now is None or now.state in ("exited", "dead")

    async def start_container(self, container: str) -> None:
        doing = f"start container `{container}`"
        now = await self.inspect_container(container)
        if now is None:
            raise FaultError(Fault(Reason.CONTAINER_LOST, f"Could not {doing}: it is gone."))
        # The engine would run one that has ended a second time.
        if now.state == "created":
            async with self._asking(doing, errors.of_start):
                await self._docker.containers.container(container).start()

    async def inspect_container(self, container: str) -> ContainerFacts | None:
        checked_name(container)
        async with self._asking(f"inspect container `{container}`"):
            try:
                found = facts.container_facts(
                    await self._docker.containers.container(container).show()
                )
            except DockerError as error:
                if error.status == 404:
                    return None
                raise
            if found.state == "exited" and found.exit_code in _INIT_CODES:
                return await self._unless_never_ran(found)
            return found

    async def _unless_never_ran(self, found: ContainerFacts) -> ContainerFacts:
        """The init in front of the command starts always; what it could not execute never ran."""
        params = {"stdout": "1", "stderr": "1", "tail": "2"}
        try:
            output = await self._wire.read(
                f"containers/{found.id}/logs", params=params, limit_bytes=8192
            )
        except StatusError:
            return found
        said = errors.init_failure(output[_LOG_HEADER_BYTES:].decode("utf-8", "replace"))
        return replace(found, started_at=None, error=said) if said else found

    async def signal_container(self, container: str, signal: str) -> None:
        checked_name(container)
        async with self._asking(f"send {signal} to container `{container}`"):
            try:
                await self._docker.containers.container(container).kill(signal=signal)
            except DockerError as error:
                if error.status not in (404, 409):
                    raise

    async def pause_container(self, container: str) -> bool:
        checked_name(container)
        async with self._asking(f"pause container `{container}`"):
            try:
                await self._docker.containers.container(container).pause()
            except DockerError as error:
                if error.status not in (404, 409):
                    raise
        now = await self.inspect_container(container)
        return now is not None and now.state == "paused"

    async def unpause_container(self, container: str) -> None:
        """The engine answers 500 where the container does not stand still: so look."""
        checked_name(container)
        try:
            async with self._asking(f"resume container `{container}`"):
                await self._docker.containers.container(container).unpause()
        except FaultError as error:
            if error.fault.reason is Reason.ENGINE_UNAVAILABLE:
                raise
            now = await self.inspect_container(container)
            if now is not None and now.state == "paused":
                raise

    async def remove_container(self, container: str) -> None:
        checked_name(container)
        async with self._asking(f"remove container `{container}`"):
            while True:
                try:
                    await self._docker.containers.container(container).delete(force=True, v=True)
                except DockerError as error:
                    if error.status == 404:
                        return
                    if error.status != 409 or "already in progress" not in error.message:
                        raise
                else:
                    return
                await asyncio.sleep(_POLL_SECONDS)

    async def list_containers(self, labels: Mapping[str, str]) -> Sequence[ContainerFacts]:
        async with self._asking("list containers"):
            listed = await self._docker.containers.list(
                all=True, filters=json.dumps(by_labels(labels))
            )
        found = await all_of(self.inspect_container, [c.id for c in listed])
        return [container for container in found if container is not None]

"""Gives each run the image of its environment: found here, fetched, or built."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace

import structlog

from executord.core.reasons import Fault, FaultError, Reason
from executord.core.run import Environment, Image, ImagePhase, PullPolicy, Stage, StageCost
from executord.images import builder, puller
from executord.images.environment import (
    check_instructions,
    environment_key,
    environment_tag,
    is_image_id,
    normalised,
    registry_reference,
)
from executord.images.feed import Feed
from executord.images.ledger import FactStore, Ledger, MadeBy
from executord.images.sharing import SharedWork
from executord.images.sizes import own_bytes
from executord.ports import (
    Clock,
    Engine,
    ImageEntry,
    ImageFacts,
    OnOutput,
    OnPhase,
    OnProgress,
    Provided,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One run's wish, and how to keep it informed."""

    environment: Environment
    on_phase: OnPhase
    on_output: OnOutput
    on_progress: OnProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Got:
    image: ImageFacts
    stage: Stage = Stage.IMAGE
    way: MadeBy = "local"
    bytes_fetched: int = 0
    key: str = ""
    is_new: bool = True


class ImageProvider:
    """Implements ports.Images. Order: here already, in the registry (if there is one), built.

    `registry` is a prefix such as `registry.example:5000/team`, or "" for none. `push` asks for
    built images to be offered there; nothing does so yet.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        facts: FactStore,
        clock: Clock,
        registry: str = "",
        push: bool = False,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._registry = registry
        self.pushes = push
        self._ledger = Ledger(facts, clock)
        self._shared = SharedWork()

    async def open(self, live_runs: Collection[str]) -> None:
        """Only `live_runs` still pin their images; others ended while nobody looked."""
        await self._ledger.keep_only(live_runs)

    async def close(self) -> None:
        """Cancel pulls and builds; whoever waits for one is cancelled with it."""
        await self._shared.close()

    async def provide(
        self,
        run_id: str,
        environment: Environment,
        *,
        on_phase: OnPhase,
        on_output: OnOutput,
        on_progress: OnProgress,
    ) -> Provided:
        began = self._clock.monotonic()
        asked = _Asked(
            environment=environment,
            on_phase=on_phase,
            on_output=on_output,
            on_progress=on_progress,
        )
        if normalised(environment.dockerfile):
            got = await self._environment_image(asked)
        else:
            got = await self._plain_image(asked)
        seconds = self._clock.monotonic() - began
        image = Image(id=got.image.id, reference=environment.image, key=got.key)
        made = (got.way, seconds) if got.is_new else None
        await self._ledger.use(run_id, image, made=made)
        cost = StageCost(
            stage=got.stage,
            seconds=seconds,
            way=got.way,
            bytes_fetched=got.bytes_fetched,
            bytes_from_cache=got.image.size_bytes if got.way == "local" else 0,
        )
        return Provided(image=image, costs=(cost,))

    async def has(self, environment: Environment) -> bool:
        """Whether the environment's image is on the node. Asks the engine alone."""
        base = await self._engine.inspect_image(environment.image)
        if base is None or not normalised(environment.dockerfile):
            return base is not None
        key = environment_key(
            base_id=base.id,
            dockerfile=environment.dockerfile,
            build_args=environment.build_args,
            platform=base.architecture,
        )
        return await self._engine.inspect_image(environment_tag(key)) is not None

    async def release(self, run_id: str) -> None:
        await self._ledger.release(run_id)

    async def _plain_image(self, asked: _Asked) -> _Got:
        reference = asked.environment.image
        here = await self._here(asked)
        if here is not None:
            return _Got(image=here, is_new=False)
        self._require_pullable(asked)
        await asked.on_phase(ImagePhase.PULLING)
        return await self._pull(asked, reference)

    async def _here(self, asked: _Asked) -> ImageFacts | None:
        """The environment's image or base, unless it has to be asked for anew."""
        environment = asked.environment
        if environment.pull is PullPolicy.ALWAYS and not is_image_id(environment.image):
            return None
        return await self._engine.inspect_image(environment.image)

    @staticmethod
    def _require_pullable(asked: _Asked) -> None:
        image = asked.environment.image
        if asked.environment.pull is PullPolicy.NEVER:
            why = "is not on this node, and `pull: never` forbids to fetch it."
        elif is_image_id(image):
            why = "is not on this node, and an id cannot be fetched: use its name or digest."
        else:
            return
        raise FaultError(Fault(Reason.IMAGE_NOT_FOUND, f"Image `{image}` {why}"))

    async def _pull(
        self,
        asked: _Asked,
        reference: str,
        *,
        on_begin: Callable[[], Awaitable[None]] | None = None,
    ) -> _Got:
        async def work(feed: Feed) -> puller.Pulled:
            return await puller.pull(self._engine, feed, reference)

        pulled, is_first = await self._shared.take_part(
            f"pull {reference}",
            work,
            on_output=asked.on_output,
            on_progress=asked.on_progress,
            on_begin=on_begin,
        )
        return _Got(
            image=pulled.image,
            stage=Stage.PULL,
            way="pulled",
            bytes_fetched=pulled.bytes_fetched if is_first else 0,
        )

    async def _environment_image(self, asked: _Asked) -> _Got:
        environment = asked.environment
        check_instructions(environment.dockerfile)
        base = await self._base(asked)
        key = environment_key(
            base_id=base.image.id,
            dockerfile=environment.dockerfile,
            build_args=environment.build_args,
            platform=base.image.architecture,
        )
        here = await self._engine.inspect_image(environment_tag(key))
        if here is not None:
            return _Got(
                image=here,
                key=key,
                stage=base.stage,
                way=base.way,
                bytes_fetched=base.bytes_fetched,
                is_new=False,
            )
        fetched = await self._from_registry(asked, key)
        if fetched is not None:
            return fetched
        await asked.on_phase(ImagePhase.BUILDING)
        return await self._build(asked, key, base)

    async def _base(self, asked: _Asked) -> _Got:
        """Without the base nobody knows the key; fetching it is a part of building."""
        here = await self._here(asked)
        if here is not None:
            return _Got(image=here, is_new=False)
        self._require_pullable(asked)
        await asked.on_phase(ImagePhase.BUILDING)
        return await self._pull(asked, asked.environment.image)

    async def _from_registry(self, asked: _Asked, key: str) -> _Got | None:
        """None where the registry does not have it, or cannot say: then it is built here."""
        if not self._registry or asked.environment.pull is PullPolicy.NEVER:
            return None
        reference = registry_reference(self._registry, key)
        try:
            # That it will be a pull is known once the registry has begun to send it.
            got = await self._pull(
                asked, reference, on_begin=lambda: asked.on_phase(ImagePhase.PULLING)
            )
        except FaultError as error:
            reason = error.fault.reason
            if reason not in (
                Reason.IMAGE_NOT_FOUND,
                Reason.IMAGE_DENIED,
                Reason.REGISTRY_UNAVAILABLE,
            ):
                raise
            if reason is not Reason.IMAGE_NOT_FOUND:
                log.warning("images.registry_unusable", detail=error.fault.detail)
            return None
        await self._engine.tag_image(got.image.id, environment_tag(key))
        return replace(got, key=key)

    async def _build(self, asked: _Asked, key: str, base: _Got) -> _Got:
        async def work(feed: Feed) -> ImageFacts:
            return await builder.build(
                self._engine, feed, key=key, base=base.image, environment=asked.environment
            )

        image, _ = await self._shared.take_part(
            f"build {key}", work, on_output=asked.on_output, on_progress=asked.on_progress
        )
        return _Got(
            image=image,
            key=key,
            stage=Stage.BUILD,
            way="built",
            bytes_fetched=base.bytes_fetched,
        )

    async def entries(self) -> Sequence[ImageEntry]:
        """Images that runs have used and that are still here; others are none of our business."""
        images = {image.id: image for image in await self._engine.list_images()}
        found: list[ImageEntry] = []
        for record in await self._ledger.records():
            image = images.get(record.image_id)
            if image is None:
                if not record.used_by:
                    await self._ledger.forget(record.key)
                continue
            found.append(
                ImageEntry(
                    key=record.key,
                    reference=record.reference,
                    image_id=record.image_id,
                    size_bytes=image.size_bytes,
                    own_bytes=own_bytes(image, images.values()),
                    last_used=record.last_used,
                    used_by=record.used_by,
                    made_by=record.made_by,
                    made_seconds=record.made_seconds,
                )
            )
        return found

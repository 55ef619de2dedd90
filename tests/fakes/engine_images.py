"""Images, registry and builds of the fake engine."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from executord.core.reasons import Fault, FaultError, Reason
from executord.ports import BuildSpec, BuildStep, ImageFacts, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteImage:
    """What the registry holds under a name: layers by size; `fault` is what a pull meets."""

    layers: tuple[int, ...] = (1000, 3000)
    id: str = ""
    fault: Fault | None = None
    gate: asyncio.Event | None = None


@dataclass(slots=True)
class FakeImages:
    """Images by id, names by reference, and what a registry would hand out."""

    by_id: dict[str, ImageFacts] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    registry: dict[str, RemoteImage] = field(default_factory=dict)
    registry_is_down: bool = False
    build_gate: asyncio.Event | None = None
    pulls: Counter[str] = field(default_factory=Counter)
    builds: Counter[str] = field(default_factory=Counter)
    pulls_in_flight: int = 0
    builds_in_flight: int = 0
    built: dict[str, BuildSpec] = field(default_factory=dict)

    def add(
        self,
        reference: str,
        *,
        image_id: str = "",
        size_bytes: int = 1000,
        labels: Mapping[str, str] | None = None,
    ) -> ImageFacts:
        """Make an image present under a name; an older one of that name loses it."""
        reference = with_tag(reference)
        image_id = image_id or digest_of(f"image {reference}")
        self.by_id[image_id] = ImageFacts(
            id=image_id,
            size_bytes=size_bytes,
            created_at=time.time(),
            architecture="amd64",
            layers=(digest_of(f"layer {image_id}"),),
            labels=dict(labels or {}),
        )
        self.names[reference] = image_id
        return self.facts_of(image_id)

    def facts_of(self, image_id: str) -> ImageFacts:
        image = self.by_id[image_id]
        tags = tuple(sorted(name for name, held in self.names.items() if held == image_id))
        return replace(image, tags=tags)

    def stack(self, image_id: str, *, on: str, size_bytes: int) -> None:
        """Let an image have the layers of another one below its own."""
        image = self.by_id[image_id]
        layers = self.by_id[on].layers + image.layers
        self.by_id[image_id] = replace(image, layers=layers, size_bytes=size_bytes)

    def find(self, reference: str) -> ImageFacts | None:
        image_id = reference if reference in self.by_id else self.names.get(with_tag(reference), "")
        return self.facts_of(image_id) if image_id in self.by_id else None

    def remove(self, reference: str) -> None:
        image = self.find(reference)
        if image is None:
            return
        names = image.tags if reference == image.id else (with_tag(reference),)
        for name in names:
            del self.names[name]
        if image.id not in self.names.values():
            del self.by_id[image.id]

    async def pull(self, reference: str) -> AsyncGenerator[Progress, None]:
        self.pulls[reference] += 1
        remote = self._ask_registry(reference)
        total = sum(remote.layers)
        done = 0
        self.pulls_in_flight += 1
        try:
            for number, size in enumerate(remote.layers):
                yield Progress(
                    what="pull", bytes_done=done, bytes_total=total, detail=f"layer {number}"
                )
                if remote.gate is not None:
                    await remote.gate.wait()
                await asyncio.sleep(0)
                done += size
            if remote.fault is not None:
                raise FaultError(remote.fault)
            yield Progress(what="pull", bytes_done=total, bytes_total=total, detail="done")
            self.add(reference, image_id=remote.id, size_bytes=total)
        finally:
            self.pulls_in_flight -= 1

    def _ask_registry(self, reference: str) -> RemoteImage:
        if self.registry_is_down:
            raise FaultError(
                Fault(
                    Reason.REGISTRY_UNAVAILABLE,
                    f"Image `{reference}` cannot be fetched: its registry does not answer.",
                )
            )
        remote = self.registry.get(reference) or self.registry.get(with_tag(reference))
        if remote is None:
            raise FaultError(Fault(Reason.IMAGE_NOT_FOUND, f"Image `{reference}` does not exist."))
        return remote

    async def build(self, spec: BuildSpec) -> AsyncGenerator[BuildStep, None]:
        """Carry out a Dockerfile of which only FROM and a `RUN exit N` mean anything."""
        self.builds[spec.tag] += 1
        self.built[spec.tag] = spec
        instructions = [line for line in spec.dockerfile.splitlines() if line.strip()]
        steps = len(instructions)
        self.builds_in_flight += 1
        try:
            for number, instruction in enumerate(instructions, start=1):
                line = f"Step {number}/{steps} : {instruction}\n".encode()
                yield BuildStep(output=line, step=number, steps=steps)
                if number == 1 and self.find(instruction.split()[1]) is None:
                    async with aclosing(self.pull(instruction.split()[1])) as pulled:
                        async for _ in pulled:
                            pass
                if self.build_gate is not None:
                    await self.build_gate.wait()
                await asyncio.sleep(0)
                if instruction.startswith("RUN exit "):
                    code = instruction.removeprefix("RUN exit ")
                    raise FaultError(
                        Fault(
                            Reason.BUILD_FAILED,
                            f"Step {number}/{steps} : {instruction}: returned a code of {code}.",
                        )
                    )
            image_id = digest_of(f"built {spec.dockerfile} {sorted(spec.build_args.items())}")
            self.add(spec.tag, image_id=image_id, labels=spec.labels)
        finally:
            self.builds_in_flight -= 1


def with_tag(reference: str) -> str:
    last = reference.rsplit("/", 1)[-1]
    return reference if ":" in last else f"{reference}:latest"


def digest_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

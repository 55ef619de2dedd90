"""The images of environments."""

from collections.abc import (
    Awaitable,
    Callable,
    Sequence,
)
from dataclasses import dataclass
from typing import Literal, Protocol

from executord.core.run import (
    Environment,
    Image,
    ImagePhase,
    StageCost,
)
from executord.ports.progress import OnProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided:
    image: Image
    costs: tuple[StageCost, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    key: str
    reference: str
    image_id: str
    size_bytes: int
    own_bytes: int
    last_used: float
    used_by: tuple[str, ...]
    made_by: Literal["local", "pulled", "built"]
    made_seconds: float


OnPhase = Callable[[ImagePhase], Awaitable[None]]
OnOutput = Callable[[bytes], Awaitable[None]]


class Images(Protocol):
    async def provide(
        self,
        run_id: str,
        environment: Environment,
        *,
        on_phase: OnPhase,
        on_output: OnOutput,
        on_progress: OnProgress,
    ) -> Provided:
        """The environment's image, found, pulled or built; `on_phase` is told before the latter
        two begin, `on_output` gets the build's output. Cancelling leaves shared work to others.
        """
        ...

    async def has(self, environment: Environment) -> bool:
        """Whether a run could begin with it at once. Looks on the node alone."""
        ...

    async def release(self, run_id: str) -> None:
        """The run no longer pins its image."""
        ...

    async def entries(self) -> Sequence[ImageEntry]: ...

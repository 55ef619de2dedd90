"""Where transitions are delivered to, and what can come of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from executord.core.cloudevents import CloudEvent


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has every event of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Not delivered, or nobody knows: the same batch is to be sent again, later.

    `why` is a sentence without secrets. `after_seconds` is what the receiver asked for.
    """

    why: str
    after_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The receiver understood and does not want it; sending it again would not help."""

    why: str


Verdict: TypeAlias = Delivered | Again | Refused


class Sink(Protocol):
    async def deliver(self, events: Sequence[CloudEvent]) -> Verdict:
        """All of the batch or none of it counts. Ends within a deadline; raises nothing.

        May be cancelled at any moment; then nobody knows whether the batch has arrived.
        """
        ...

    async def close(self) -> None: ...

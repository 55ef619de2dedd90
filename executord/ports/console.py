"""What containers write."""

from collections.abc import (
    AsyncIterator,
)
from dataclasses import dataclass
from typing import Literal, Protocol

from executord.ports.engine import ContainerFacts

Stream = Literal["stdout", "stderr", "build", "gap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleRecord:
    """A piece of output. `offset` counts the run's output bytes before it.

    In a gap `data` is empty and `lost_bytes` says how much is missing (0: nobody knows).
    """

    offset: int
    time: float
    stream: Stream
    data: bytes
    lost_bytes: int = 0

    @property
    def end(self) -> int:
        return self.offset + len(self.data) + self.lost_bytes


class Consoles(Protocol):
    """Console output of every run, kept on disk; the order is that in which it was collected."""

    async def append(self, run_id: str, stream: Stream, data: bytes) -> None:
        """Output that does not come from the container: that of a build."""
        ...

    async def collect(self, run_id: str, container: ContainerFacts) -> None:
        """Begin, or go on after a restart, to keep what the container writes. Idempotent."""
        ...

    async def drain(self, run_id: str) -> None:
        """The container has ended: return when all it wrote is kept, and stop collecting."""
        ...

    async def seal(self, run_id: str) -> None:
        """No more output will come: compress it, and let followers end."""
        ...

    def read(
        self, run_id: str, *, since: int, follow: bool, stream: Stream | None
    ) -> AsyncIterator[ConsoleRecord]:
        """From the first byte at or after `since`; with `follow` until the console is sealed."""
        ...

    async def delete(self, run_id: str) -> None: ...

"""The daemon's memory."""

from collections.abc import (
    Collection,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Literal, Protocol

from executord.core.run import (
    Run,
    Transition,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """`outcome`: a new run, the one that is already here, or a clash of ids."""

    outcome: Literal["new", "same", "conflict"]
    run: Run
    transitions: tuple[Transition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    runs: tuple[Run, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxState:
    pending: int
    oldest_time: float | None
    parked_runs: tuple[str, ...]


class Journal(Protocol):
    """The daemon's memory. What a method has returned survives the death of process and host.

    A journal that cannot be written raises JournalError (a bug or a dying disk): the daemon stops.
    """

    async def accept(self, run: Run, first: Transition, fingerprint: str) -> Accepted:
        """Keep a new run; by id and fingerprint of its content tell a repetition from a clash."""
        ...

    async def commit(self, run: Run, transitions: Sequence[Transition]) -> tuple[Transition, ...]:
        """The run as it is now, and what is to be reported, together or not at all.

        Gives the transitions back with their node-wide `seq`, in order and without gaps.
        """
        ...

    async def run(self, run_id: str) -> Run | None: ...
    async def unfinished_runs(self) -> Sequence[Run]:
        """Every run that is not terminal, or not clean, in order of acceptance."""
        ...

    async def runs(
        self, *, state: str | None, project: str | None, limit: int, cursor: str | None
    ) -> RunPage:
        """Newest first. FaultError is not raised for a bad cursor: ValueError is."""
        ...

    async def transitions_of(self, run_id: str) -> Sequence[Transition]: ...
    async def transitions_after(self, seq: int, limit: int) -> Sequence[Transition]: ...
    async def last_seq(self) -> int: ...

    # small facts that parts keep: (kind, key) -> JSON object
    async def put_fact(self, kind: str, key: str, value: Mapping[str, object]) -> None: ...
    async def delete_fact(self, kind: str, key: str) -> None: ...
    async def fact(self, kind: str, key: str) -> Mapping[str, object] | None: ...
    async def facts(self, kind: str) -> Mapping[str, Mapping[str, object]]: ...

    # outbox: transitions that are not yet delivered, in order
    async def undelivered(self, limit: int) -> Sequence[Transition]:
        """The oldest first, those of parked runs left out."""
        ...

    async def mark_delivered(self, seqs: Sequence[int]) -> None: ...
    async def park(self, run_id: str, why: str) -> None: ...
    async def outbox_state(self) -> OutboxState: ...

    async def forget_before(
        self, *, runs_before: float, events_before: float, spared: Collection[str] = ()
    ) -> Sequence[str]:
        """Drop old ended runs and delivered events; gives the ids of the dropped runs. Those that
        are `spared` stay, however old.
        """
        ...


class JournalError(Exception):
    """The journal cannot be written, or is not one. Nothing may be promised any more."""


class DiskFullError(JournalError):
    """There is no space for the journal: nothing was written, and trying later may work."""

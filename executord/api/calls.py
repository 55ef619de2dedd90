"""What a handler gets and gives: no part of it knows HTTP's transport."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from executord.api.access import Access, Caller, Reach
from executord.api.services import Services
from executord.core.refusals import Refusal, RefusedError

Q = TypeVar("Q")
B = TypeVar("B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Q, B]):
    """One request, checked. `run_id` is "" where the path holds none.

    `last_event_id` is what a reader of server-sent events saw last, or "".
    """

    services: Services
    caller: Caller
    access: Access
    query: Q
    body: B
    run_id: str = ""
    last_event_id: str = ""

    @property
    def sees_all_runs(self) -> bool:
        return self.caller.reach(self.access) is Reach.ALL

    async def owns(self, run_id: str) -> bool:
        try:
            return await self.services.manager.owner_of(run_id) == self.caller.uid
        except RefusedError:  # the run is too old to be remembered
            return False

    async def must_reach_run(self) -> None:
        """RefusedError: UNKNOWN_RUN, or FORBIDDEN for somebody else's run."""
        if self.sees_all_runs:
            return
        await self.services.manager.run(self.run_id)
        if not await self.owns(self.run_id):
            raise RefusedError(
                Refusal.FORBIDDEN,
                f"Run {self.run_id} belongs to another user, and your role reaches your own only.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer of `executord.api.answers`, or bytes of the given type."""

    body: object
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of a stream: what it is, its JSON, and the id to resume after it."""

    kind: str
    resume_id: str
    data: bytes


@asynccontextmanager
async def closing(source: AsyncIterator[object]) -> AsyncIterator[None]:
    """Ends a generator at once, where it would else wait for the collector."""
    try:
        yield
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()


@dataclass(frozen=True, slots=True)
class Follow:
    """A stream. It ends when there will never be more; its generator is closed in any case."""

    items: AsyncIterator[Item]

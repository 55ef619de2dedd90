"""Lists of the engine: which things, and what each of them is."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

_INSPECTED_AT_ONCE = 8


def by_labels(labels: Mapping[str, str]) -> dict[str, list[str]]:
    return {"label": [f"{key}={value}" for key, value in labels.items()]}


async def all_of(
    inspect: Callable[[str], Awaitable[T | None]], names: Sequence[str]
) -> Sequence[T]:
    """What is still there of `names`, asked a few at a time."""
    slots = asyncio.Semaphore(_INSPECTED_AT_ONCE)

    async def one(name: str) -> T | None:
        async with slots:
            return await inspect(name)

    found = await asyncio.gather(*(one(name) for name in names), return_exceptions=True)
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    return [thing for thing in found if thing is not None and not isinstance(thing, BaseException)]

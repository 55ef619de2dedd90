"""Runs and their transitions for tests of what keeps or reports them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from executord.core import lifecycle
from executord.core.messages import Begun, CleanedUp, Crashed, Event, SlotReserved
from executord.core.reasons import Fault, Reason
from executord.core.run import Assignment, Environment, Run, Transition
from executord.ports import Journal


class SteppedClock:
    """Stands still until a test moves it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def new_run(run_id: str, *, project: str = "alice/churn", at: float = 100.0) -> lifecycle.Step:
    assignment = Assignment(
        id=run_id,
        project=project,
        command=("python", "train.py"),
        environment=Environment(image="python:3.12-slim"),
        tier="small",
        env={"DEPTH": "6"},
    )
    return lifecycle.accept(assignment, at=at)


async def accepted(journal: Journal, run_id: str, *, project: str = "alice/churn") -> Run:
    step = new_run(run_id, project=project)
    await journal.accept(step.run, step.transitions[0], "fingerprint")
    return step.run


async def going_on(journal: Journal, run: Run, event: Event) -> tuple[Run, tuple[Transition, ...]]:
    step = lifecycle.step(run, event)
    return step.run, await journal.commit(step.run, step.transitions)


async def scheduled(journal: Journal, run: Run) -> Run:
    run, _ = await going_on(journal, run, SlotReserved(at=101.0, waited_seconds=1.0))
    return run


async def begun(journal: Journal, run: Run) -> Run:
    """Two transitions on from its acceptance."""
    run, _ = await going_on(journal, await scheduled(journal, run), Begun(at=102.0))
    return run


async def ended(journal: Journal, run: Run, *, at: float = 110.0, clean: bool = True) -> Run:
    fault = Fault(Reason.INTERNAL, "A test ended it.")
    run, _ = await going_on(journal, run, Crashed(at=at, fault=fault))
    if clean:
        run, _ = await going_on(journal, run, CleanedUp(at=at, attempt=run.attempt))
    return run


def transition(run_id: str, number: int, *, seq: int = 0) -> Transition:
    """A bare one, for sinks."""
    first = new_run(run_id).transitions[0]
    return replace(first, number=number, seq=seq, time=100.0 + number)


async def eventually(
    condition: Callable[[], Awaitable[object]], *, within_seconds: float = 20.0, step: float = 0.02
) -> None:
    """Looks again and again, until the condition holds or the time is up."""
    for _ in range(int(within_seconds / step)):
        if await condition():
            return
        await asyncio.sleep(step)
    raise AssertionError(f"it did not come true within {within_seconds} s")


async def nothing_waits(journal: Journal) -> bool:
    return (await journal.outbox_state()).pending == 0

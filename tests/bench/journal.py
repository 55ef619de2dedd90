"""Durable accepts and transitions a second: `python -m tests.bench.journal [TASKS] [RUNS]`."""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvloop

from executord.core import lifecycle
from executord.core.messages import Begun, SlotReserved
from executord.core.run import Assignment, Environment, Run
from executord.journal.journal import SqliteJournal


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def assignment(number: int) -> Assignment:
    return Assignment(
        id=f"r-{number}",
        project="alice/churn",
        command=("python", "train.py", "--depth", "6"),
        environment=Environment(image="python:3.12-slim", dockerfile="RUN pip install pandas"),
        tier="small",
        env={f"VARIABLE_{n}": "some value" for n in range(10)},
    )


async def timed(
    name: str, tasks: int, jobs: Iterator[Callable[[], Awaitable[object]]], count: int
) -> None:
    waits: list[float] = []

    async def worker() -> None:
        for job in jobs:
            begun = time.perf_counter()
            await job()
            waits.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(tasks)))
    seconds = time.perf_counter() - begun
    p99 = statistics.quantiles(waits, n=100)[98]
    print(f"{name:<12} {tasks:>3} tasks  {count / seconds:>8.0f}/s  p99 {p99 * 1000:.1f} ms")


async def main(tasks: int, count: int) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        journal = SqliteJournal(Path(folder) / "journal.sqlite", clock=SystemClock())
        await journal.open()
        accepted: list[Run] = []

        async def accept(number: int) -> None:
            step = lifecycle.accept(assignment(number), at=time.time())
            accepted.append(step.run)
            await journal.accept(step.run, step.transitions[0], "fingerprint")

        async def go_on(run: Run) -> None:
            for event in (SlotReserved(at=time.time(), waited_seconds=0.1), Begun(at=time.time())):
                step = lifecycle.step(run, event)
                run = step.run
                await journal.commit(run, step.transitions)

        accepts = iter([lambda n=n: accept(n) for n in range(count)])
        await timed("accept", tasks, accepts, count)
        commits = iter([lambda run=run: go_on(run) for run in accepted])
        await timed("2 commits", tasks, commits, count)
        begun = time.perf_counter()
        await journal.runs(state=None, project="alice/churn", limit=100, cursor=None)
        print(f"page of 100  {(time.perf_counter() - begun) * 1000:.1f} ms")
        await journal.close()


if __name__ == "__main__":
    chosen = [int(argument) for argument in sys.argv[1:]]
    uvloop.run(main(*(chosen or [64, 20_000])))

"""Writes into a journal and reports to a URL until it is killed:
`python -m tests.fakes.reporting_writer PATH URL NAME`.
"""

import asyncio
import sys
from pathlib import Path

from executord.journal.journal import SqliteJournal
from executord.upstream.http import HttpSink
from executord.upstream.outbox import Outbox
from tests.fakes.lives import SteppedClock, accepted, begun, ended


async def main(path: str, url: str, name: str) -> None:
    clock = SteppedClock()
    journal = SqliteJournal(Path(path), clock=clock)
    await journal.open()
    sink = HttpSink(url=url, clock=clock)
    outbox = Outbox(journal=journal, sink=sink, node="n", clock=clock, events_a_batch=10)
    journal.subscribe(outbox.wake)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(outbox.run())
        for count in range(1_000_000):
            await ended(journal, await begun(journal, await accepted(journal, f"{name}-{count}")))
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

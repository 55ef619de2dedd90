"""Writes into a journal until it is killed: `python -m tests.fakes.journal_writer PATH ROUND`.

Prints a line `<run> <number> <seq>` for each transition once the journal has returned from it.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from executord.core import lifecycle
from executord.core.messages import Begun, Crashed, SlotReserved
from executord.core.reasons import Fault, Reason
from executord.core.run import Transition
from executord.journal.journal import SqliteJournal
from tests.fakes.lives import SteppedClock, new_run

_TASKS = 16


async def write_for_ever(journal: SqliteJournal, name: str) -> None:
    for count in range(1_000_000):
        step = new_run(f"{name}-{count}")
        answer = await journal.accept(step.run, step.transitions[0], "f")
        say(answer.transitions)
        for event in (
            SlotReserved(at=1.0, waited_seconds=0.0),
            Begun(at=2.0),
            Crashed(at=3.0, fault=Fault(Reason.INTERNAL, "A test ended it.")),
        ):
            step = lifecycle.step(step.run, event)
            say(await journal.commit(step.run, step.transitions))


def say(transitions: Sequence[Transition]) -> None:
    lines = [f"{each.run_id} {each.number} {each.seq}\n" for each in transitions]
    os.write(1, "".join(lines).encode())


async def main(path: str, round_name: str) -> None:
    journal = SqliteJournal(Path(path), clock=SteppedClock())
    await journal.open()
    await asyncio.gather(
        *(write_for_ever(journal, f"{round_name}-{task}") for task in range(_TASKS))
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))

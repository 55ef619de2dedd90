"""The writer thread: units are whole, share transactions, and are found as they were left."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executord.journal.database import Database, Kind
from executord.journal.reserve import Reserve
from executord.ports import JournalError
from tests.fakes.lives import SteppedClock


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(
        tmp_path / "database.sqlite",
        prepare=lambda connection: connection.execute("CREATE TABLE n (n INTEGER UNIQUE)"),
        reserve=Reserve(tmp_path / "reserve", 4096, SteppedClock()),
        deadline_seconds=10,
    )
    await database.open()
    yield database
    await database.close()


async def put(database: Database, *numbers: int) -> None:
    def work(connection: sqlite3.Connection) -> None:
        for number in numbers:
            connection.execute("INSERT INTO n VALUES (?)", (number,))

    await database.submit(Kind.ESSENTIAL, work)


async def numbers_in(database: Database) -> list[int]:
    def question(connection: sqlite3.Connection) -> list[int]:
        return [number for (number,) in connection.execute("SELECT n FROM n ORDER BY n")]

    return await database.submit(Kind.READ, question)


async def while_held(database: Database, *work: asyncio.Task[None]) -> list[object]:
    """All of it is waiting when the thread comes to look: one group."""
    gate = threading.Event()
    held = asyncio.create_task(database.submit(Kind.READ, lambda _: gate.wait(10)))
    await asyncio.sleep(0.05)
    gate.set()
    await held
    return list(await asyncio.gather(*work, return_exceptions=True))


async def test_what_a_failing_unit_wrote_before_it_failed_is_gone_and_nothing_else(
    database: Database,
) -> None:
    await put(database, 7)
    units = [put(database, 1, 2), put(database, 3, 7), put(database, 4), put(database, 5, 4)]
    answers = await while_held(database, *map(asyncio.create_task, units))
    assert [isinstance(answer, JournalError) for answer in answers] == [False, True, False, True]
    assert await numbers_in(database) == [1, 2, 4, 7]


async def test_units_that_wait_together_share_one_transaction(database: Database) -> None:
    commits: list[str] = []

    def listen(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(
            lambda statement: commits.append(statement) if statement == "COMMIT" else None
        )

    await database.submit(Kind.READ, listen)
    await while_held(database, *(asyncio.create_task(put(database, n)) for n in range(50)))
    assert await numbers_in(database) == list(range(50))
    assert len(commits) <= 2


async def test_a_mistake_in_a_unit_is_its_callers(database: Database) -> None:
    def mistaken(_: sqlite3.Connection) -> None:
        raise KeyError("a bug")

    for kind in Kind:
        with pytest.raises(KeyError):
            await database.submit(kind, mistaken)
    with pytest.raises(JournalError):
        await database.submit(Kind.WRITE, lambda c: c.execute("INSERT INTO nowhere VALUES (1)"))
    await put(database, 1)
    assert await numbers_in(database) == [1]


async def test_writes_pass_many_checkpoints(database: Database, tmp_path: Path) -> None:
    for begin in range(0, 5000, 500):
        await asyncio.gather(*(put(database, n) for n in range(begin, begin + 500)))
    assert await numbers_in(database) == list(range(5000))
    assert (tmp_path / "database.sqlite-wal").stat().st_size < 4 * 1024 * 1024

"""A damaged row costs its run and no other, keeps every number, and says so."""

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest

from executord.core.messages import CleanedUp
from executord.core.reasons import FaultError, Reason
from executord.core.run import Stage
from executord.core.states import State
from executord.journal.journal import SqliteJournal
from executord.ports import JournalError
from tests.fakes.lives import SteppedClock, accepted, begun, ended, going_on


async def opened(folder: Path) -> SqliteJournal:
    journal = SqliteJournal(folder / "journal.sqlite", clock=SteppedClock(500.0))
    await journal.open()
    return journal


async def three_runs(folder: Path) -> None:
    journal = await opened(folder)
    for name in ("one", "two", "three"):
        await begun(journal, await accepted(journal, name))
    await ended(journal, await accepted(journal, "over"))
    await journal.close()


def change(folder: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    assert connection.execute(statement, values).rowcount == 1
    connection.close()


def flip(folder: Path, table: str, column: str, where: str, bit: int) -> None:
    connection = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    (value,) = connection.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
    raw = bytearray(value)
    raw[bit // 8 % len(raw)] ^= 1 << bit % 8
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (bytes(raw),))
    connection.close()


async def test_a_live_run_that_cannot_be_read_ends_as_error_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    await three_runs(tmp_path)
    flip(tmp_path, "runs", "body", "id = 'two'", 777)
    journal = await opened(tmp_path)
    runs = {run.id: run for run in await journal.unfinished_runs()}
    assert {name: run.state for name, run in runs.items()} == {
        "one": State.PREPARING,
        "two": State.ERROR,
        "three": State.PREPARING,
    }
    damaged = runs["two"]
    assert damaged.reason is Reason.JOURNAL_DAMAGED
    assert damaged.fault is not None
    assert "two" in damaged.fault.detail
    assert damaged.in_flight == {Stage.CLEAN_UP}
    assert not damaged.clean
    told = await journal.transitions_of("two")
    assert [each.number for each in told] == [1, 2, 3, 4]
    assert (told[-1].from_state, told[-1].to_state) == (State.PREPARING, State.ERROR)
    assert told[-1].reason is Reason.JOURNAL_DAMAGED
    assert told[-1].time == 500.0
    assert told[-1] in await journal.undelivered(100)
    # From here on it is a run like any other.
    cleaned, _ = await going_on(journal, damaged, CleanedUp(at=501.0, attempt=damaged.attempt))
    assert await journal.run("two") == cleaned
    assert {run.id for run in await journal.unfinished_runs()} == {"one", "three"}
    await journal.close()


@pytest.mark.parametrize("seed", range(40))
async def test_one_flipped_bit_in_a_runs_body_is_always_found(tmp_path: Path, seed: int) -> None:
    await three_runs(tmp_path)
    flip(tmp_path, "runs", "body", "id = 'two'", random.Random(seed).randrange(10_000))
    journal = await opened(tmp_path)
    with pytest.raises(FaultError) as caught:
        await journal.run("two")
    assert caught.value.fault.reason is Reason.JOURNAL_DAMAGED
    await journal.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("state", "Running"),
        ("state", b"\xff\xfe"),
        ("project", "bob/other"),
        ("transitions", 2),
        ("transitions", "many"),
        ("attempt", 9),
        ("attempt", "x"),
        ("accepted_at", 1.0),
        ("crc", 0),
        ("body", "text"),
        ("body", b""),
    ],
)
async def test_a_changed_column_is_found_too(tmp_path: Path, column: str, value: object) -> None:
    await three_runs(tmp_path)
    change(tmp_path, f"UPDATE runs SET {column} = ? WHERE id = 'two'", value)
    journal = await opened(tmp_path)
    with pytest.raises(FaultError):
        await journal.run("two")
    runs = {run.id: run.state for run in await journal.unfinished_runs()}
    assert runs == {"one": State.PREPARING, "two": State.ERROR, "three": State.PREPARING}
    assert len(await journal.transitions_of("two")) == 4
    await journal.close()


async def test_a_damaged_ended_run_is_listed_with_the_damage_named(tmp_path: Path) -> None:
    await three_runs(tmp_path)
    flip(tmp_path, "runs", "body", "id = 'over'", 99)
    journal = await opened(tmp_path)
    page = await journal.runs(state=None, project=None, limit=10, cursor=None)
    assert [run.id for run in page.runs] == ["over", "three", "two", "one"]
    explanation = page.runs[0].explanation()
    assert explanation is not None
    assert explanation.reason is Reason.JOURNAL_DAMAGED
    assert page.runs[0].state is State.ERROR
    assert "over" not in {run.id for run in await journal.unfinished_runs()}
    await journal.close()


async def test_a_damaged_transition_keeps_its_numbers_and_states(tmp_path: Path) -> None:
    await three_runs(tmp_path)
    flip(tmp_path, "transitions", "body", "run_id = 'two' AND number = 2", 321)
    journal = await opened(tmp_path)
    told = await journal.transitions_of("two")
    assert [each.number for each in told] == [1, 2, 3]
    assert (told[1].from_state, told[1].to_state) == (State.QUEUED, State.SCHEDULED)
    assert told[1].reason is Reason.JOURNAL_DAMAGED
    assert "damaged" in told[1].detail
    waiting = await journal.undelivered(100)
    assert [each.seq for each in waiting] == list(range(1, len(waiting) + 1))
    await journal.close()


async def test_a_damaged_fact_is_left_out(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    await journal.put_fact("image", "a", {"x": 1})
    await journal.put_fact("image", "b", {"x": 2})
    await journal.close()
    flip(tmp_path, "facts", "body", "key = 'a'", 17)
    journal = await opened(tmp_path)
    assert await journal.facts("image") == {"b": {"x": 2}}
    assert await journal.fact("image", "a") is None
    await journal.put_fact("image", "a", {"x": 3})
    assert await journal.fact("image", "a") == {"x": 3}
    await journal.close()


async def test_any_flipped_bit_of_the_file_is_an_answer_or_an_error_but_never_a_wrong_run(
    tmp_path: Path,
) -> None:
    await three_runs(tmp_path)
    journal = await opened(tmp_path)
    names = ("one", "two", "three", "over")
    truth = {name: await journal.run(name) for name in names}
    await journal.close()
    file = tmp_path / "journal.sqlite"
    whole = file.read_bytes()
    dice = random.Random(7)
    found = 0
    for _ in range(150):
        raw = bytearray(whole)
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        file.write_bytes(raw)
        try:
            journal = await opened(tmp_path)
        except (JournalError, FaultError):
            found += 1
            continue
        for name in names:
            try:
                run = await journal.run(name)
            except FaultError:
                found += 1
            else:
                assert run in (truth[name], None)
        await journal.close()
    assert found > 5


async def test_names_of_files_that_are_not_utf8_can_be_journaled(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    await journal.put_fact("kept", "r-1", {"path": "caf\udce9", "n": [1, {"\udcff": "\udcfe"}]})
    assert await journal.facts("kept") == {
        "r-1": {"path": "caf\\udce9", "n": [1, {"\\udcff": "\\udcfe"}]}
    }
    await asyncio.sleep(0)
    await journal.close()

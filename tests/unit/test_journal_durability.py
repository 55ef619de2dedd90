"""What the journal has returned is there after a restart, however the process ended."""

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from executord.core.run import Transition
from executord.journal.journal import SqliteJournal
from executord.ports import JournalError
from tests.fakes.lives import SteppedClock, accepted, begun, ended

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("EXECUTORD_KILLS", "6"))


async def opened(folder: Path, *, upstream: bool = True) -> SqliteJournal:
    journal = SqliteJournal(folder / "journal.sqlite", clock=SteppedClock(), upstream=upstream)
    await journal.open()
    return journal


async def test_a_restart_changes_nothing(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    live = await begun(journal, await accepted(journal, "live"))
    over = await ended(journal, await accepted(journal, "over"))
    await journal.mark_delivered([1, 2])
    await journal.put_fact("image", "key", {"x": 1})
    told, instance = await journal.transitions_after(0, 100), journal.instance
    await journal.close()

    journal = await opened(tmp_path)
    assert await journal.run("live") == live
    assert await journal.run("over") == over
    assert await journal.transitions_after(0, 100) == told
    assert [each.seq for each in await journal.undelivered(100)] == [3, 4, 5]
    assert await journal.facts("image") == {"key": {"x": 1}}
    assert journal.instance == instance
    await journal.close()


async def test_a_new_journal_is_another_instance(tmp_path: Path) -> None:
    names = set()
    for folder in ("a", "b"):
        journal = await opened(tmp_path / folder)
        names.add(journal.instance)
        await journal.close()
    assert len(names) == 2
    assert all(len(name) == 8 and int(name, 16) >= 0 for name in names)


async def test_closing_waits_for_what_was_asked_before(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    tasks = [asyncio.create_task(accepted(journal, f"r-{n}")) for n in range(50)]
    await asyncio.sleep(0)
    await journal.close()
    await asyncio.gather(*tasks)
    journal = await opened(tmp_path)
    assert len(await journal.unfinished_runs()) == 50
    await journal.close()


async def test_closing_twice_is_once(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    await journal.close()
    await journal.close()


async def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    with pytest.raises(JournalError, match="locked"):
        await opened(tmp_path)
    await accepted(journal, "r-1")
    await journal.close()


async def test_a_newer_journal_is_refused_with_what_to_do(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalError, match=r"version 99.*Install the newer version"):
        await opened(tmp_path)


async def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "journal.sqlite") as connection:
        connection.execute("CREATE TABLE songs (title)")
    connection.close()
    with pytest.raises(JournalError, match="not a journal"):
        await opened(tmp_path)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"not a database, but long enough " * 100)
    with pytest.raises(JournalError, match="cannot be opened"):
        await opened(tmp_path)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot be opened"):
        await opened(tmp_path / "file" / "state")


async def test_a_link_in_the_journals_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "journal.sqlite").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match="cannot be opened"):
        await opened(tmp_path)


async def test_the_journal_is_for_its_owner_alone(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    await accepted(journal, "r-1")
    assert modes_in(tmp_path) == {
        "journal.sqlite": 0o600,
        "journal.sqlite-wal": 0o600,
        "journal.reserve": 0o600,
    }
    await journal.close()


def modes_in(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


async def test_without_an_upstream_nothing_waits_and_what_waited_still_does(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    await accepted(journal, "before")
    await journal.close()
    journal = await opened(tmp_path, upstream=False)
    await begun(journal, await accepted(journal, "meanwhile"))
    assert [each.run_id for each in await journal.undelivered(10)] == ["before"]
    await journal.close()


async def test_those_who_subscribed_hear_of_transitions_once_they_are_durable(
    tmp_path: Path,
) -> None:
    journal = await opened(tmp_path)
    heard: list[int] = []
    journal.subscribe(lambda: heard.append(1))
    run = await accepted(journal, "r-1")
    assert len(heard) == 1
    await journal.commit(run, [])
    await journal.mark_delivered([1])
    assert len(heard) == 1
    task = asyncio.create_task(begun(journal, run))
    await asyncio.sleep(0)
    task.cancel()
    await journal.last_seq()
    assert len(heard) == 2
    await journal.close()


async def test_the_questions_asked_often_never_look_at_every_run(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    connection = sqlite3.connect(tmp_path / "journal.sqlite")
    try:
        for question in (
            "SELECT body FROM runs WHERE clean = 0 AND accepted > 5 ORDER BY accepted LIMIT 500",
            "SELECT body FROM runs WHERE state = 'x' AND accepted < 9 ORDER BY accepted DESC",
            "SELECT body FROM runs WHERE project = 'x' ORDER BY accepted DESC LIMIT 9",
            "SELECT body FROM runs WHERE state = 'x' AND project = 'y' ORDER BY accepted DESC",
            "SELECT id FROM runs WHERE clean = 1 AND ended_at < 5 ORDER BY ended_at",
            "SELECT body FROM transitions WHERE delivered = 0 ORDER BY seq LIMIT 9",
            "SELECT body FROM transitions WHERE run_id = 'x' ORDER BY number",
        ):
            plan = connection.execute(f"EXPLAIN QUERY PLAN {question}").fetchall()
            steps = [str(step[3]) for step in plan]
            assert len(steps) == 1, (question, steps)
            assert "USING INDEX" in steps[0], (question, steps)
    finally:
        connection.close()


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    dice = random.Random(41)
    acknowledged: dict[int, tuple[str, int]] = {}
    for kill in range(KILLS):
        acknowledged |= killed_after(
            tmp_path / "journal.sqlite", f"k{kill}", dice.uniform(0.2, 0.8)
        )
        journal = await opened(tmp_path)
        told = {each.seq: (each.run_id, each.number) for each in await every_transition(journal)}
        assert sorted(told) == list(range(1, len(told) + 1))
        assert acknowledged.items() <= told.items()
        of_run = defaultdict(list)
        for run_id, number in told.values():
            of_run[run_id].append(number)
        for run in await journal.unfinished_runs():
            assert of_run.pop(run.id) == list(range(1, run.transitions + 1))
        assert not of_run
        await journal.close()
    assert len(acknowledged) > 100


def killed_after(path: Path, name: str, seconds: float) -> dict[int, tuple[str, int]]:
    """What a writer had been told before it was killed."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.journal_writer", str(path), name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        timer = time.monotonic() + seconds
        lines = [first]
        while time.monotonic() < timer:
            lines.append(writer.stdout.readline())
        writer.kill()
        lines += writer.stdout.readlines()
    whole = [line.decode().split() for line in lines if line.endswith(b"\n") and b"[" not in line]
    return {int(seq): (run_id, int(number)) for run_id, number, seq in whole}


async def every_transition(journal: SqliteJournal) -> list[Transition]:
    found: list[Transition] = []
    seq = 0
    while page := await journal.transitions_after(seq, 5000):
        found += page
        seq = page[-1].seq
    return found

"""The journal's questions and changes, each in terms of rows. They run in the writer thread."""

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from executord.journal.codec import FactRow, RunRow, TransitionRow
from executord.ports import JournalError

_RUN = ", ".join(RunRow._fields)
_TRANSITION = ", ".join(TransitionRow._fields)

_INSERT_RUN = (
    f"INSERT INTO runs ({_RUN}) VALUES ({', '.join('?' * len(RunRow._fields))})"  # noqa: S608
    " ON CONFLICT (id) DO NOTHING"
)
_UPDATE_RUN = """
    UPDATE runs SET state = ?, project = ?, live = ?, clean = ?, transitions = ?, attempt = ?,
        accepted_at = ?, ended_at = ?, crc = ?, body = ?
    WHERE id = ? AND transitions = ?
"""
_INSERT_TRANSITION = (
    f"INSERT INTO transitions ({_TRANSITION}, delivered)"  # noqa: S608
    f" VALUES ({', '.join('?' * len(TransitionRow._fields))}, ?)"
)
_SELECT_RUNS = f"SELECT {_RUN} FROM runs"  # noqa: S608
_SELECT_TRANSITIONS = f"SELECT seq, {_TRANSITION} FROM transitions"  # noqa: S608
_NOT_PARKED = "NOT EXISTS (SELECT 1 FROM parked WHERE parked.run_id = transitions.run_id)"


class Numbered(NamedTuple):
    """A transition's row with its node-wide number."""

    seq: int
    row: TransitionRow


class Listed(NamedTuple):
    """A run's row with its place in the order of acceptance."""

    accepted: int
    row: RunRow


class Outbox(NamedTuple):
    pending: int
    oldest_time: float | None
    parked: tuple[str, ...]


# -- changes ---------------------------------------------------------------------------------------


def accept(
    connection: sqlite3.Connection, row: RunRow, first: TransitionRow, *, delivered: bool
) -> int | RunRow:
    """The first transition's seq, or the row of the run that has this id already."""
    if connection.execute(_INSERT_RUN, row).rowcount == 0:
        existing = run(connection, row.id)
        if existing is None:
            raise JournalError(f"The run {row.id} is there and is not: the index is damaged.")
        return existing
    # What is left of a forgotten run of the same id would clash with the new one.
    connection.execute("DELETE FROM transitions WHERE run_id = ?", (row.id,))
    return _insert(connection, first, delivered=delivered)


def commit(
    connection: sqlite3.Connection,
    row: RunRow,
    transitions: Sequence[TransitionRow],
    *,
    delivered: bool,
) -> list[int]:
    """The seqs. JournalError unless the run is there and the numbers go on from its last one."""
    before = row.transitions - len(transitions)
    changed = connection.execute(
        _UPDATE_RUN,
        (
            row.state,
            row.project,
            row.live,
            row.clean,
            row.transitions,
            row.attempt,
            row.accepted_at,
            row.ended_at,
            row.crc,
            row.body,
            row.id,
            before,
        ),
    ).rowcount
    if changed != 1:
        raise JournalError(
            f"A bug: the run {row.id} is not in the journal with {before} transitions, "
            f"so it cannot be kept with {row.transitions}."
        )
    return [_insert(connection, transition, delivered=delivered) for transition in transitions]


def replace_damaged(
    connection: sqlite3.Connection,
    row: RunRow,
    transitions: Sequence[TransitionRow],
    *,
    delivered: bool,
) -> list[int]:
    """As `commit`, over a row of which nothing is believed."""
    connection.execute(
        "UPDATE runs SET transitions = ? WHERE id = ?",
        (row.transitions - len(transitions), row.id),
    )
    return commit(connection, row, transitions, delivered=delivered)


def _insert(connection: sqlite3.Connection, row: TransitionRow, *, delivered: bool) -> int:
    cursor = connection.execute(_INSERT_TRANSITION, (*row, int(delivered)))
    seq = cursor.lastrowid
    if seq is None:
        raise JournalError("SQLite gave the transition no number.")
    return seq


def mark_delivered(connection: sqlite3.Connection, seqs: Sequence[int]) -> None:
    connection.executemany(
        "UPDATE transitions SET delivered = 1 WHERE seq = ?", [(seq,) for seq in seqs]
    )


def park(connection: sqlite3.Connection, run_id: str, why: str, now: float) -> None:
    """The first reason stands."""
    connection.execute(
        "INSERT INTO parked (run_id, why, since) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (run_id, why, now),
    )


def put_fact(connection: sqlite3.Connection, row: FactRow) -> None:
    connection.execute(
        "INSERT INTO facts (kind, key, crc, body) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (kind, key) DO UPDATE SET crc = excluded.crc, body = excluded.body",
        row,
    )


def delete_fact(connection: sqlite3.Connection, kind: str, key: str) -> None:
    connection.execute("DELETE FROM facts WHERE kind = ? AND key = ?", (kind, key))


# -- questions -------------------------------------------------------------------------------------


def run(connection: sqlite3.Connection, run_id: str) -> RunRow | None:
    found = connection.execute(f"{_SELECT_RUNS} WHERE id = ?", (run_id,)).fetchone()
    return found and RunRow(*found)


def unfinished(connection: sqlite3.Connection, after: int, limit: int) -> list[Listed]:
    rows = connection.execute(
        f"SELECT accepted, {_RUN} FROM runs WHERE clean = 0 AND accepted > ?"  # noqa: S608
        " ORDER BY accepted LIMIT ?",
        (after, limit),
    )
    return [Listed(accepted, RunRow(*row)) for accepted, *row in rows]


def newest(
    connection: sqlite3.Connection,
    *,
    state: str | None,
    project: str | None,
    before: int | None,
    limit: int,
) -> list[Listed]:
    wanted = {"state = ?": state, "project = ?": project, "accepted < ?": before}
    asked = {condition: value for condition, value in wanted.items() if value is not None}
    where = f"WHERE {' AND '.join(asked)}" if asked else ""
    rows = connection.execute(
        f"SELECT accepted, {_RUN} FROM runs {where} ORDER BY accepted DESC LIMIT ?",  # noqa: S608
        (*asked.values(), limit),
    )
    return [Listed(accepted, RunRow(*row)) for accepted, *row in rows]


def transitions_of(connection: sqlite3.Connection, run_id: str) -> list[Numbered]:
    return _numbered(
        connection.execute(f"{_SELECT_TRANSITIONS} WHERE run_id = ? ORDER BY number", (run_id,))
    )


def transitions_after(connection: sqlite3.Connection, seq: int, limit: int) -> list[Numbered]:
    return _numbered(
        connection.execute(
            f"{_SELECT_TRANSITIONS} WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
        )
    )


def undelivered(connection: sqlite3.Connection, limit: int) -> list[Numbered]:
    return _numbered(
        connection.execute(
            f"{_SELECT_TRANSITIONS} WHERE delivered = 0 AND {_NOT_PARKED} ORDER BY seq LIMIT ?",
            (limit,),
        )
    )


def last_seq(connection: sqlite3.Connection) -> int:
    found = connection.execute(
        "SELECT seq FROM sqlite_sequence WHERE name = 'transitions'"
    ).fetchone()
    return int(found[0]) if found else 0


def outbox(connection: sqlite3.Connection) -> Outbox:
    waiting = f"FROM transitions WHERE delivered = 0 AND {_NOT_PARKED}"
    (pending,) = connection.execute(f"SELECT count(*) {waiting}").fetchone()
    oldest = connection.execute(f"SELECT time {waiting} ORDER BY seq LIMIT 1").fetchone()
    parked = connection.execute("SELECT run_id FROM parked ORDER BY since, run_id").fetchall()
    return Outbox(pending, oldest and oldest[0], tuple(run_id for (run_id,) in parked))


def fact(connection: sqlite3.Connection, kind: str, key: str) -> FactRow | None:
    found = connection.execute(
        "SELECT kind, key, crc, body FROM facts WHERE kind = ? AND key = ?", (kind, key)
    ).fetchone()
    return found and FactRow(*found)


def facts(connection: sqlite3.Connection, kind: str) -> list[FactRow]:
    rows = connection.execute(
        "SELECT kind, key, crc, body FROM facts WHERE kind = ? ORDER BY key", (kind,)
    )
    return [FactRow(*row) for row in rows]


def _numbered(rows: sqlite3.Cursor) -> list[Numbered]:
    return [Numbered(seq, TransitionRow(*row)) for seq, *row in rows]

"""Dropping what is old, in small bites, so that writers never wait long behind it.

Kept whatever its age: a run that is not ended and clean, that is spared, or of which something is
undelivered (parked or not); and the events of a run that lives.
"""

import sqlite3
from collections.abc import Collection

_RUNS_A_BITE = 200
_EVENTS_A_BITE = 1000


def drop_runs(
    connection: sqlite3.Connection, before: float, spared: Collection[str] = ()
) -> list[str]:
    """Their ids; fewer than a bite's worth when no more are left. Events are left to age."""
    marks = ",".join("?" * len(spared))
    ids = [
        row[0]
        for row in connection.execute(
            f"""
            SELECT id FROM runs WHERE clean = 1 AND ended_at < ? AND NOT EXISTS (
                SELECT 1 FROM transitions WHERE run_id = runs.id AND delivered = 0
            ) AND id NOT IN ({marks})
            ORDER BY ended_at LIMIT ?
            """,  # noqa: S608 - nothing but question marks
            (before, *spared, _RUNS_A_BITE),
        )
    ]
    for run_id in ids:
        connection.execute("DELETE FROM runs WHERE id = ?", (run_id,))
        connection.execute("DELETE FROM parked WHERE run_id = ?", (run_id,))
    return ids


def drop_events(connection: sqlite3.Connection, before: float, after_seq: int) -> int | None:
    """Looks at one bite of events after `after_seq`; gives where to go on, None at the end."""
    bite = connection.execute(
        """
        SELECT seq, time < ? AND delivered = 1
            AND NOT EXISTS (SELECT 1 FROM runs WHERE id = run_id AND live = 1)
        FROM transitions WHERE seq > ? ORDER BY seq LIMIT ?
        """,
        (before, after_seq, _EVENTS_A_BITE),
    ).fetchall()
    old = [(seq,) for seq, is_old in bite if is_old]
    connection.executemany("DELETE FROM transitions WHERE seq = ?", old)
    reached_newer_ones = bite and not old and _is_newer(connection, bite[0][0], before)
    return None if len(bite) < _EVENTS_A_BITE or reached_newer_ones else bite[-1][0]


def _is_newer(connection: sqlite3.Connection, seq: int, before: float) -> bool:
    found = connection.execute("SELECT time >= ? FROM transitions WHERE seq = ?", (before, seq))
    return bool(found.fetchone()[0])

"""Runs, their transitions (which are the outbox too), parked runs, and small facts of other parts.

Bodies stand last in their tables, so that the short columns are read without them.
"""

STATEMENTS = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # `accepted` is the order of acceptance. `live`: not in a terminal state. `clean`: ended, and
    # nothing of it is left outside the journal. What stands beside the body repeats it, for
    # queries and for what can still be said of a run whose body is damaged.
    """
    CREATE TABLE runs (
        accepted INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        project TEXT NOT NULL,
        live INTEGER NOT NULL,
        clean INTEGER NOT NULL,
        transitions INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        accepted_at REAL NOT NULL,
        ended_at REAL,
        fingerprint TEXT NOT NULL,
        crc INTEGER NOT NULL,
        body BLOB NOT NULL
    )
    """,
    "CREATE INDEX runs_unfinished ON runs (accepted) WHERE clean = 0",
    "CREATE INDEX runs_ended ON runs (ended_at) WHERE clean = 1",
    "CREATE INDEX runs_by_state ON runs (state, accepted)",
    "CREATE INDEX runs_by_project ON runs (project, accepted, state)",
    # SQLite counts `seq`: one more than the highest that ever was, also when that row is deleted,
    # while a unit that is rolled back gives its numbers back.
    """
    CREATE TABLE transitions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        time REAL NOT NULL,
        from_state TEXT,
        to_state TEXT NOT NULL,
        delivered INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (run_id, number)
    )
    """,
    "CREATE INDEX transitions_undelivered ON transitions (seq) WHERE delivered = 0",
    """
    CREATE TABLE parked (
        run_id TEXT PRIMARY KEY,
        why TEXT NOT NULL,
        since REAL NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE facts (
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        crc INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
)

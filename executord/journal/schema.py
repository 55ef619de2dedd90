"""Makes the journal's schema what this version expects, or refuses with a sentence."""

import secrets
import sqlite3

from executord.journal.migrations import m0001_initial
from executord.ports import JournalError

MIGRATIONS: tuple[tuple[str, ...], ...] = (m0001_initial.STATEMENTS,)

_APPLICATION_ID = 0x65786A31  # "exj1" in the file's header: a journal, not just any database


def migrate(connection: sqlite3.Connection) -> str:
    """Bring the schema up to date, each step in a transaction; gives the journal's instance id.

    JournalError where the file is another program's database, or a newer version's journal.
    """
    version = _number(connection, "user_version")
    application = _number(connection, "application_id")
    if application != _APPLICATION_ID and (version or _has_tables(connection)):
        raise JournalError("The file is a database, but not a journal of executord.")
    if version > len(MIGRATIONS):
        raise JournalError(
            f"The journal has schema version {version}, and this version of executord knows "
            f"{len(MIGRATIONS)} at most. Install the newer version again, or restore a backup."
        )
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        _apply(connection, number, statements)
    (instance,) = connection.execute("SELECT value FROM meta WHERE key = 'instance'").fetchone()
    return str(instance)


def _apply(connection: sqlite3.Connection, number: int, statements: tuple[str, ...]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in statements:
        connection.execute(statement)
    if number == 1:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute("INSERT INTO meta VALUES ('instance', ?)", (secrets.token_hex(4),))
    connection.execute(f"PRAGMA user_version = {number}")
    connection.execute("COMMIT")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _has_tables(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])

"""How the journal's SQLite connection is set up, and what its errors mean."""

import os
import sqlite3
from pathlib import Path

from executord.ports import JournalError

_PRAGMAS = (
    # No second process can open the file, and the WAL's index needs no shared memory on disk.
    # Before 3.51.3 two connections that write or checkpoint could lose a reset of the WAL.
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = FULL",
    "wal_autocheckpoint = 0",
    f"journal_size_limit = {16 * 1024 * 1024}",
    "cache_size = -4096",
    "temp_store = MEMORY",
    "trusted_schema = OFF",
    "cell_size_check = ON",
)

_FULL = sqlite3.SQLITE_FULL
_OF_ONE_UNIT = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
    }
)


def connect(path: Path) -> sqlite3.Connection:
    """The file is made if need be, and is for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
    # A flipped bit in a text must be found by its checksum, not by a decoder that raises.
    connection.text_factory = _text
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def means_full_disk(error: sqlite3.Error) -> bool:
    return _primary_code(error) == _FULL


def concerns_one_unit(error: sqlite3.Error) -> bool:
    """Whether the mistake is in what was asked, not in the disk. No code: never reached SQLite."""
    code = _primary_code(error)
    return code is None or code in _OF_ONE_UNIT


def translated(error: Exception) -> Exception:
    if isinstance(error, sqlite3.Error):
        translation = JournalError(f"The journal refuses what it was asked to keep: {error}")
        translation.__cause__ = error
        return translation
    return error


def _primary_code(error: sqlite3.Error) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")

"""One SQLite connection in one thread. All writes that wait share one transaction and one fsync.

Each caller's unit of work is all or nothing on its own (a savepoint), and is awaited until it is
durable. Reads run in the same thread, between transactions, so they see durable data only.
"""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, TypeVar

import structlog

from executord.core.reasons import Fault, FaultError, Reason
from executord.journal import connection as sqlite
from executord.journal.reserve import Reserve
from executord.ports import DiskFullError, JournalError

log = structlog.get_logger(__name__)

T = TypeVar("T")

_UNITS_A_GROUP = 256
_UNITS_BETWEEN_CHECKPOINTS = 1000
_WATCH_SECONDS = 10.0


class Kind(Enum):
    """How a unit is treated: what ends something (ESSENTIAL) may use the reserve, WRITE not."""

    READ = auto()
    WRITE = auto()
    ESSENTIAL = auto()


@dataclass(slots=True)
class _Unit:
    work: Callable[[sqlite3.Connection], Any]
    kind: Kind
    future: "asyncio.Future[Any]"
    afterwards: Callable[[], None] | None
    outcome: Any = None
    error: Exception | None = None


class Database:
    """`failed` is set when nothing can be written any more; `failure` says why.

    Two ways lead there: a write or fsync that failed (it is never tried a second time, since the
    kernel forgets what it could not write), and a disk that does not answer for
    `deadline_seconds`.
    """

    def __init__(
        self,
        path: Path,
        *,
        prepare: Callable[[sqlite3.Connection], Any],
        reserve: Reserve,
        deadline_seconds: float,
    ) -> None:
        self.failed = asyncio.Event()
        self.failure = ""
        self._path = path
        self._prepare = prepare
        self._reserve = reserve
        self._deadline_seconds = deadline_seconds
        self._watch_seconds = _WATCH_SECONDS
        self._queue: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._is_open = False
        self._watcher: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._units_since_checkpoint = 0

    async def open(self) -> Any:
        """Gives what `prepare` gives. JournalError where the journal cannot be used."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # A daemon thread: one that hangs on a dead disk must not keep the process from ending.
        threading.Thread(
            target=self._live, args=(opened,), name="executord-journal", daemon=True
        ).start()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                prepared = await opened
        except TimeoutError:
            raise JournalError(f"The disk under {self._path} does not answer.") from None
        self._watcher = asyncio.create_task(self._watch(), name="journal-watcher")
        self._is_open = True
        return prepared

    async def close(self) -> None:
        """Waits until what was asked for before is written."""
        if not self._is_open:
            return
        self._is_open = False
        self._queue.put(None)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await asyncio.shield(self._closed)
        except TimeoutError:
            raise JournalError(f"The journal {self._path} cannot be closed.") from None
        finally:
            if self._watcher:
                self._watcher.cancel()

    async def submit(
        self,
        kind: Kind,
        work: Callable[[sqlite3.Connection], T],
        *,
        afterwards: Callable[[], None] | None = None,
    ) -> T:
        """Do `work` in the writer thread; this returns once it is durable.

        It may be run more than once, each time with what it did before undone. Cancelling the
        caller does not cancel the work; `afterwards` is called in the event loop even then.
        """
        if self.failure:
            raise JournalError(self.failure)
        if not self._is_open:
            raise JournalError("The journal is closed.")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.add(future)
        self._queue.put(_Unit(work, kind, future, afterwards))
        try:
            return await future
        finally:
            self._waiting.discard(future)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._watch_seconds)
            since = self._busy_since
            if since is not None and time.monotonic() - since > self._deadline_seconds:
                self.failure = self.failure or f"The disk under {self._path} does not answer."
                self.failed.set()
                for future in self._waiting:
                    _set_error(future, JournalError(self.failure))

    # -- in the thread from here on ----------------------------------------------------------------

    def _live(self, opened: "asyncio.Future[Any]") -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite.connect(self._path)
            self._tell(_set_result, opened, self._prepare(connection))
            self._reserve.is_whole()
            while group := self._next_group():
                self._busy_since = time.monotonic()
                self._do(connection, group)
                self._busy_since = None
        except (sqlite3.Error, OSError, JournalError) as error:
            refusal = error if isinstance(error, JournalError) else _cannot_open(self._path, error)
            self._tell(_set_error, opened, refusal)
        finally:
            if connection:
                with suppress(sqlite3.Error):
                    connection.close()
            self._tell(_set_result, self._closed, None)

    def _next_group(self) -> list[_Unit]:
        """What waits now, at least one; nothing once the journal is closed."""
        first = self._queue.get()
        group = [] if first is None else [first]
        while group and len(group) < _UNITS_A_GROUP:
            try:
                unit = self._queue.get_nowait()
            except queue.Empty:
                break
            if unit is None:
                self._queue.put(None)
                break
            group.append(unit)
        return group

    def _do(self, connection: sqlite3.Connection, group: list[_Unit]) -> None:
        writes = [unit for unit in group if unit.kind is not Kind.READ]
        reads = [unit for unit in group if unit.kind is Kind.READ]
        if writes:
            try:
                if not self.failure:
                    self._write(connection, writes)
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be promised now
                self._give_up(error)
            if self.failure:
                for unit in writes:
                    unit.error = JournalError(self.failure)
            self._tell(_settle, writes)
        if reads:
            for unit in reads:
                _read(connection, unit)
            self._tell(_settle, reads)
        if writes and not self.failure:
            self._checkpoint_when_due(connection, len(writes))

    def _give_up(self, error: Exception) -> None:
        why = f"The journal {self._path} cannot be written: {error}"
        log.critical("journal.failed", path=str(self._path), error=repr(error))
        self.failure = self.failure or why
        self._tell(self.failed.set)

    def _write(self, connection: sqlite3.Connection, units: list[_Unit]) -> None:
        """On a full disk new work is refused; for what ends something, room is made, twice."""
        if not self._reserve.is_whole():
            units = _refuse_all_but_essential(units, self._path)
        for make_room in (self._checkpoint, self._use_reserve, None):
            if not units:
                return
            try:
                _transact(connection, units)
                return
            except sqlite3.Error as error:
                if not sqlite.means_full_disk(error):
                    raise
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            units = _refuse_all_but_essential(units, self._path)
            if make_room and units:
                make_room(connection)
        _refuse(units, self._path)

    def _use_reserve(self, connection: sqlite3.Connection) -> None:
        if self._reserve.release():
            self._checkpoint(connection)

    def _checkpoint_when_due(self, connection: sqlite3.Connection, units: int) -> None:
        self._units_since_checkpoint += units
        if self._units_since_checkpoint < _UNITS_BETWEEN_CHECKPOINTS:
            return
        self._units_since_checkpoint = 0
        try:
            self._checkpoint(connection)
        except sqlite3.Error as error:
            self._give_up(error)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """After it the WAL is filled from its beginning again, so it needs no more space.

        Asked for here rather than left to SQLite, which would swallow a failed fsync.
        """
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            if not sqlite.means_full_disk(error):
                raise

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what, *arguments)


def _transact(connection: sqlite3.Connection, units: list[_Unit]) -> None:
    """Savepoints cost as much again as the work, so they come only where a unit has failed."""
    connection.execute("BEGIN IMMEDIATE")
    if not _all_succeed(connection, units):
        connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        for unit in units:
            connection.execute("SAVEPOINT unit")
            if not _all_succeed(connection, [unit]):
                connection.execute("ROLLBACK TO unit")
            connection.execute("RELEASE unit")
    connection.execute("COMMIT")


def _all_succeed(connection: sqlite3.Connection, units: list[_Unit]) -> bool:
    """Up to the first that fails by what it asks; a failing disk raises."""
    for unit in units:
        unit.error = None
        try:
            unit.outcome = unit.work(connection)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not sqlite.concerns_one_unit(error):
                raise
            unit.error = sqlite.translated(error)
            return False
    return True


def _read(connection: sqlite3.Connection, unit: _Unit) -> None:
    """A page that cannot be read costs the question, not the journal."""
    try:
        unit.outcome = unit.work(connection)
    except sqlite3.Error as error:
        detail = f"The journal cannot be read here: {error}"
        unit.error = FaultError(Fault(Reason.JOURNAL_DAMAGED, detail))
    except Exception as error:  # noqa: BLE001 - it is handed to the caller
        unit.error = error


def _refuse_all_but_essential(units: list[_Unit], path: Path) -> list[_Unit]:
    _refuse([unit for unit in units if unit.kind is not Kind.ESSENTIAL], path)
    return [unit for unit in units if unit.kind is Kind.ESSENTIAL]


def _refuse(units: list[_Unit], path: Path) -> None:
    for unit in units:
        unit.error = DiskFullError(
            f"The disk under {path.parent} is full: nothing was written. Free space there."
        )


def _cannot_open(path: Path, error: Exception) -> JournalError:
    return JournalError(f"The journal {path} cannot be opened: {error}")


def _settle(units: list[_Unit]) -> None:
    for unit in units:
        if unit.afterwards and unit.error is None:
            unit.afterwards()
        if unit.future.done():  # the caller was cancelled; the work is done all the same
            continue
        if unit.error is None:
            unit.future.set_result(unit.outcome)
        else:
            unit.future.set_exception(unit.error)


def _set_result(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _set_error(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)

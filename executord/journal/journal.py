"""The daemon's memory on disk: implements `ports.Journal` over one SQLite file."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from executord.core import lifecycle
from executord.core.messages import Crashed
from executord.core.reasons import FaultError
from executord.core.run import Run, Transition
from executord.journal import codec, pages, queries, retention, salvage, schema
from executord.journal.database import Database, Kind
from executord.journal.reserve import Reserve
from executord.ports import (
    Accepted,
    Clock,
    DiskFullError,
    JournalError,
    OutboxState,
    RunPage,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

_PAGE_LIMIT = 1000
_BATCH_LIMIT = 10_000
_UNFINISHED_A_READ = 500
_DECODED_IN_A_ROW = 50
_RESERVE_BYTES = 4 * 1024 * 1024
_DEADLINE_SECONDS = 120.0


class SqliteJournal:
    """See `ports.Journal`. Beyond it:

    - `failed` is set, and `failure` says why, once nothing can be written any more (a failed write
      or fsync, a disk that hangs). Every call raises JournalError from then on: the daemon stops.
    - On a full disk `accept` raises DiskFullError at once; all else may use a reserve of 4 MiB
      that is set aside beside the journal, and raises it only when that is used up. The journal
      goes on when there is space again.
    - With `upstream=False` nobody waits for transitions: they count as delivered when committed.
      Those that were not delivered before stay, for the day an upstream is configured again.
    - A damaged row costs that run only. `unfinished_runs` ends it as Error `journal_damaged`, by
      the lifecycle; `run` raises FaultError of that reason; `runs` shows what the columns beside
      the body still tell, with that fault in it. A damaged transition keeps its numbers and says
      so; a damaged fact is left out, and logged.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        upstream: bool = True,
        deadline_seconds: float = _DEADLINE_SECONDS,
    ) -> None:
        self._clock = clock
        self._delivered_at_once = not upstream
        self._instance = ""
        self._subscribers: list[Callable[[], None]] = []
        self._database = Database(
            path,
            prepare=schema.migrate,
            reserve=Reserve(path.with_name("journal.reserve"), _RESERVE_BYTES, clock),
            deadline_seconds=deadline_seconds,
        )

    async def open(self) -> None:
        """JournalError where it cannot be used: locked, damaged, of a newer version, no journal."""
        self._instance = await self._database.open()

    async def close(self) -> None:
        """What was asked for before is written first."""
        await self._database.close()

    @property
    def instance(self) -> str:
        """Eight hex digits, made with the journal: another value means another memory."""
        return self._instance

    @property
    def failed(self) -> asyncio.Event:
        return self._database.failed

    @property
    def failure(self) -> str:
        return self._database.failure

    def subscribe(self, on_transitions: Callable[[], None]) -> None:
        """Called in the event loop whenever transitions have become durable."""
        self._subscribers.append(on_transitions)

    # -- runs --------------------------------------------------------------------------------------

    async def accept(self, run: Run, first: Transition, fingerprint: str) -> Accepted:
        if (first.run_id, first.number, run.transitions) != (run.id, 1, 1):
            raise JournalError(f"A bug: the new run {run.id} does not begin with transition 1.")
        row, transition = codec.run_row(run, fingerprint), codec.transition_row(first)
        try:
            outcome = await self._write(
                partial(
                    queries.accept, row=row, first=transition, delivered=self._delivered_at_once
                )
            )
        except DiskFullError:
            existing = await self._read(partial(queries.run, run_id=run.id))
            if existing is None:
                raise
            outcome = existing
        if isinstance(outcome, codec.RunRow):
            same = outcome.fingerprint == fingerprint
            return Accepted(outcome="same" if same else "conflict", run=_readable_run(outcome))
        return Accepted(outcome="new", run=run, transitions=(replace(first, seq=outcome),))

    async def commit(self, run: Run, transitions: Sequence[Transition]) -> tuple[Transition, ...]:
        """JournalError, with nothing written, unless the numbers go on from the run's last one."""
        expected = range(run.transitions - len(transitions) + 1, run.transitions + 1)
        if [(t.run_id, t.number) for t in transitions] != [(run.id, n) for n in expected]:
            raise JournalError(f"A bug: transitions of run {run.id} do not end with its last one.")
        return await self._commit(queries.commit, run, transitions)

    async def _commit(
        self,
        change: Callable[..., list[int]],
        run: Run,
        transitions: Sequence[Transition],
    ) -> tuple[Transition, ...]:
        seqs = await self._essential(
            partial(
                change,
                row=codec.run_row(run, ""),
                transitions=[codec.transition_row(transition) for transition in transitions],
                delivered=self._delivered_at_once,
            ),
            afterwards=self._notify if transitions else None,
        )
        return tuple(replace(t, seq=seq) for t, seq in zip(transitions, seqs, strict=True))

    async def run(self, run_id: str) -> Run | None:
        row = await self._read(partial(queries.run, run_id=run_id))
        return None if row is None else _readable_run(row)

    async def unfinished_runs(self) -> Sequence[Run]:
        runs: list[Run] = []
        place = 0
        while listed := await self._read(
            partial(queries.unfinished, after=place, limit=_UNFINISHED_A_READ)
        ):
            place = listed[-1].accepted
            async for _, row in _in_turns(listed):
                try:
                    runs.append(codec.run_of(row))
                except codec.DamagedError as error:
                    runs.append(await self._give_up(row, str(error)))
        return runs

    async def _give_up(self, row: codec.RunRow, why: str) -> Run:
        log.error("journal.run_damaged", run_id=row.id, why=why)
        damaged = await self._damaged_run(row, why)
        crash = Crashed(at=self._clock.now(), fault=salvage.damage(row.id, why))
        step = lifecycle.step(damaged, crash)
        await self._commit(queries.replace_damaged, step.run, step.transitions)
        return step.run

    async def _damaged_run(self, row: codec.RunRow, why: str) -> Run:
        return salvage.damaged_run(row, list(await self.transitions_of(row.id)), why)

    async def runs(
        self, *, state: str | None, project: str | None, limit: int, cursor: str | None
    ) -> RunPage:
        """At most 1,000 a page."""
        limit = max(1, min(limit, _PAGE_LIMIT))
        listed = await self._read(
            partial(
                queries.newest,
                state=state,
                project=project,
                before=None if cursor is None else pages.place_of(cursor),
                limit=limit + 1,
            )
        )
        runs = []
        async for _, row in _in_turns(listed[:limit]):
            try:
                runs.append(codec.run_of(row))
            except codec.DamagedError as error:
                log.error("journal.run_damaged", run_id=row.id, why=str(error))  # noqa: TRY400
                runs.append(await self._damaged_run(row, str(error)))
        more = len(listed) > limit
        next_cursor = pages.cursor_of(listed[limit - 1].accepted) if more else None
        return RunPage(runs=tuple(runs), next_cursor=next_cursor)

    # -- transitions -------------------------------------------------------------------------------

    async def transitions_of(self, run_id: str) -> Sequence[Transition]:
        return await self._transitions(partial(queries.transitions_of, run_id=run_id))

    async def transitions_after(self, seq: int, limit: int) -> Sequence[Transition]:
        """At most 10,000 at once."""
        limit = max(1, min(limit, _BATCH_LIMIT))
        return await self._transitions(partial(queries.transitions_after, seq=seq, limit=limit))

    async def last_seq(self) -> int:
        return await self._read(queries.last_seq)

    async def undelivered(self, limit: int) -> Sequence[Transition]:
        """At most 10,000 at once."""
        limit = max(1, min(limit, _BATCH_LIMIT))
        return await self._transitions(partial(queries.undelivered, limit=limit))

    async def mark_delivered(self, seqs: Sequence[int]) -> None:
        await self._essential(partial(queries.mark_delivered, seqs=tuple(seqs)))

    async def park(self, run_id: str, why: str) -> None:
        now = self._clock.now()
        await self._essential(partial(queries.park, run_id=run_id, why=why, now=now))

    async def outbox_state(self) -> OutboxState:
        """`pending` and `oldest_time` leave parked runs out."""
        found = await self._read(queries.outbox)
        return OutboxState(
            pending=found.pending, oldest_time=found.oldest_time, parked_runs=found.parked
        )

    async def _transitions(
        self, question: Callable[[sqlite3.Connection], list[queries.Numbered]]
    ) -> list[Transition]:
        return [_transition(numbered) async for numbered in _in_turns(await self._read(question))]

    # -- facts -------------------------------------------------------------------------------------

    async def put_fact(self, kind: str, key: str, value: Mapping[str, object]) -> None:
        await self._essential(partial(queries.put_fact, row=codec.fact_row(kind, key, value)))

    async def delete_fact(self, kind: str, key: str) -> None:
        await self._essential(partial(queries.delete_fact, kind=kind, key=key))

    async def fact(self, kind: str, key: str) -> Mapping[str, object] | None:
        row = await self._read(partial(queries.fact, kind=kind, key=key))
        return None if row is None else _fact(row)

    async def facts(self, kind: str) -> Mapping[str, Mapping[str, object]]:
        rows = await self._read(partial(queries.facts, kind=kind))
        found = {row.key: _fact(row) async for row in _in_turns(rows)}
        return {key: fact for key, fact in found.items() if fact is not None}

    # -- retention ---------------------------------------------------------------------------------

    async def forget_before(
        self, *, runs_before: float, events_before: float, spared: Collection[str] = ()
    ) -> Sequence[str]:
        """Runs by the time of their end, events by their own; see `journal.retention`."""
        dropped: list[str] = []
        drop_runs = partial(retention.drop_runs, before=runs_before, spared=tuple(spared))
        while ids := await self._essential(drop_runs):
            dropped += ids
        place: int | None = 0
        while place is not None:
            place = await self._essential(
                partial(retention.drop_events, before=events_before, after_seq=place)
            )
        return dropped

    # -- the database ------------------------------------------------------------------------------

    async def _read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        return await self._database.submit(Kind.READ, question)

    async def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        return await self._database.submit(Kind.WRITE, change, afterwards=self._notify)

    async def _essential(
        self,
        change: Callable[[sqlite3.Connection], T],
        *,
        afterwards: Callable[[], None] | None = None,
    ) -> T:
        return await self._database.submit(Kind.ESSENTIAL, change, afterwards=afterwards)

    def _notify(self) -> None:
        for on_transitions in self._subscribers:
            on_transitions()


def _readable_run(row: codec.RunRow) -> Run:
    try:
        return codec.run_of(row)
    except codec.DamagedError as error:
        raise FaultError(salvage.damage(row.id, str(error))) from error


def _transition(numbered: queries.Numbered) -> Transition:
    seq, row = numbered
    try:
        return codec.transition_of(seq, row)
    except codec.DamagedError as error:
        log.error("journal.transition_damaged", seq=seq, run_id=row.run_id, why=str(error))  # noqa: TRY400
        return salvage.damaged_transition(seq, row, str(error))


def _fact(row: codec.FactRow) -> dict[str, object] | None:
    try:
        return codec.fact_of(row)
    except codec.DamagedError as error:
        log.error("journal.fact_damaged", kind=row.kind, key=row.key, why=str(error))  # noqa: TRY400
        return None


async def _in_turns(rows: Iterable[T]) -> AsyncIterator[T]:
    """Decoding a thousand rows must not hold up everybody else in the event loop."""
    for count, row in enumerate(rows, start=1):
        yield row
        if count % _DECODED_IN_A_ROW == 0:
            await asyncio.sleep(0)

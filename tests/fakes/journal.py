"""A journal in memory. It passes the same contract suite as the one on disk."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from executord.core.run import Run, Transition
from executord.ports import Accepted, DiskFullError, JournalError, OutboxState, RunPage


@dataclass
class Kept:
    run: Run
    fingerprint: str


@dataclass
class FakeJournal:
    """Set `full` for a disk without space (nothing is accepted; the rest is), `reserve_used` for
    one where nothing at all can be written, and `broken` to a sentence for one that is dead.
    """

    instance: str = "0a1b2c3d"
    full: bool = False
    reserve_used: bool = False
    broken: str = ""
    upstream: bool = True
    subscribers: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._runs: dict[str, Kept] = {}
        self._order: dict[str, int] = {}
        self._accepted = 0
        self._transitions: dict[int, Transition] = {}
        self._undelivered: set[int] = set()
        self._last_seq = 0
        self._parked: dict[str, str] = {}
        self._facts: dict[tuple[str, str], str] = {}

    async def open(self) -> None:
        self._usable()

    async def close(self) -> None:
        self.broken = self.broken or "The journal is closed."

    def subscribe(self, on_transitions: Callable[[], None]) -> None:
        self.subscribers.append(on_transitions)

    # -- runs --------------------------------------------------------------------------------------

    async def accept(self, run: Run, first: Transition, fingerprint: str) -> Accepted:
        self._usable()
        if (first.run_id, first.number, run.transitions) != (run.id, 1, 1):
            raise JournalError("a new run begins with transition 1")
        known = self._runs.get(run.id)
        if known is not None:
            same = known.fingerprint == fingerprint
            return Accepted(outcome="same" if same else "conflict", run=known.run)
        if self.full:
            raise DiskFullError("the disk is full")
        for seq in [seq for seq, each in self._transitions.items() if each.run_id == run.id]:
            del self._transitions[seq]
        self._accepted += 1
        self._order[run.id] = self._accepted
        self._runs[run.id] = Kept(run, fingerprint)
        return Accepted(outcome="new", run=run, transitions=self._report([first]))

    async def commit(self, run: Run, transitions: Sequence[Transition]) -> tuple[Transition, ...]:
        self._writable()
        kept = self._runs.get(run.id)
        before = kept.run.transitions if kept else -1
        numbers = [(transition.run_id, transition.number) for transition in transitions]
        expected = [(run.id, number) for number in range(before + 1, run.transitions + 1)]
        if kept is None or numbers != expected or before > run.transitions:
            raise JournalError(f"the run {run.id} goes on from transition {before}")
        kept.run = run
        return self._report(transitions)

    def _report(self, transitions: Sequence[Transition]) -> tuple[Transition, ...]:
        numbered = []
        for transition in transitions:
            self._last_seq += 1
            numbered.append(replace(transition, seq=self._last_seq))
            self._transitions[self._last_seq] = numbered[-1]
            if self.upstream:
                self._undelivered.add(self._last_seq)
        if numbered:
            for on_transitions in self.subscribers:
                on_transitions()
        return tuple(numbered)

    async def run(self, run_id: str) -> Run | None:
        self._usable()
        kept = self._runs.get(run_id)
        return kept.run if kept else None

    async def unfinished_runs(self) -> Sequence[Run]:
        self._usable()
        return [
            kept.run for kept in self._runs.values() if not (kept.run.is_over and kept.run.clean)
        ]

    async def runs(
        self, *, state: str | None, project: str | None, limit: int, cursor: str | None
    ) -> RunPage:
        self._usable()
        place = self._accepted + 1 if cursor is None else _place(cursor)
        found = [
            kept.run
            for run_id, kept in reversed(self._runs.items())
            if self._order[run_id] < place
            and state in (None, kept.run.state.value)
            and project in (None, kept.run.assignment.project)
        ]
        page = found[:limit]
        more = len(found) > limit
        return RunPage(
            runs=tuple(page), next_cursor=f"before-{self._order[page[-1].id]}" if more else None
        )

    # -- transitions -------------------------------------------------------------------------------

    async def transitions_of(self, run_id: str) -> Sequence[Transition]:
        self._usable()
        return [each for each in self._transitions.values() if each.run_id == run_id]

    async def transitions_after(self, seq: int, limit: int) -> Sequence[Transition]:
        self._usable()
        return [each for each in self._transitions.values() if each.seq > seq][:limit]

    async def last_seq(self) -> int:
        self._usable()
        return self._last_seq

    async def undelivered(self, limit: int) -> Sequence[Transition]:
        self._usable()
        return self._waiting()[:limit]

    async def mark_delivered(self, seqs: Sequence[int]) -> None:
        self._writable()
        self._undelivered -= set(seqs)

    async def park(self, run_id: str, why: str) -> None:
        self._writable()
        self._parked.setdefault(run_id, why)

    async def outbox_state(self) -> OutboxState:
        self._usable()
        waiting = self._waiting()
        return OutboxState(
            pending=len(waiting),
            oldest_time=waiting[0].time if waiting else None,
            parked_runs=tuple(self._parked),
        )

    def _waiting(self) -> list[Transition]:
        return [
            self._transitions[seq]
            for seq in sorted(self._undelivered)
            if self._transitions[seq].run_id not in self._parked
        ]

    # -- facts and retention -----------------------------------------------------------------------

    async def put_fact(self, kind: str, key: str, value: Mapping[str, object]) -> None:
        self._writable()
        self._facts[kind, key] = json.dumps(value)

    async def delete_fact(self, kind: str, key: str) -> None:
        self._writable()
        self._facts.pop((kind, key), None)

    async def fact(self, kind: str, key: str) -> Mapping[str, object] | None:
        return (await self.facts(kind)).get(key)

    async def facts(self, kind: str) -> Mapping[str, Mapping[str, object]]:
        self._usable()
        return {key: json.loads(text) for (of, key), text in self._facts.items() if of == kind}

    async def forget_before(
        self, *, runs_before: float, events_before: float, spared: Collection[str] = ()
    ) -> Sequence[str]:
        self._writable()
        waiting = {self._transitions[seq].run_id for seq in self._undelivered}
        dropped = [
            kept.run.id
            for kept in self._runs.values()
            if kept.run.clean
            and kept.run.ended_at is not None
            and kept.run.ended_at < runs_before
            and kept.run.id not in waiting
            and kept.run.id not in spared
        ]
        for run_id in dropped:
            del self._runs[run_id]
            self._parked.pop(run_id, None)
        live = {kept.run.id for kept in self._runs.values() if not kept.run.is_over}
        for seq, transition in list(self._transitions.items()):
            is_needed = seq in self._undelivered or transition.run_id in live
            if transition.time < events_before and not is_needed:
                del self._transitions[seq]
        return dropped

    def _usable(self) -> None:
        if self.broken:
            raise JournalError(self.broken)

    def _writable(self) -> None:
        self._usable()
        if self.reserve_used:
            raise DiskFullError("the disk is full, and the reserve is used up")


def _place(cursor: str) -> int:
    word, _, number = cursor.partition("-")
    if word != "before" or not number.isdecimal():
        raise ValueError("not a cursor of this journal")
    return int(number)

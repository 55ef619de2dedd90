"""Admits runs, owns their actors, and answers what is asked about them."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import structlog

from executord.core import admission
from executord.core.admission import Capacity, Ledger, Waiting
from executord.core.lifecycle import accept
from executord.core.messages import Crashed, Resumed, SlotReserved, StopAsked
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Run, StopOrder, Transition, UsageSummary
from executord.core.states import State
from executord.ports import (
    DiskFullError,
    FileChange,
    JournalError,
    Progress,
    RunPage,
    UsageSample,
)
from executord.runs.actor import RunActor
from executord.runs.container import tier_gone
from executord.runs.context import Tools
from executord.runs.describe import NodeFacts, node_state
from executord.runs.drafts import AssignmentDraft, Submitted
from executord.runs.feed import Feed
from executord.runs.intake import assignment_of, fingerprint
from executord.runs.node import NodeState
from executord.runs.observer import Observer
from executord.runs.sync import SyncReport, Syncs
from executord.runs.turns import Turns

log = structlog.get_logger(__name__)

_RETRY_AFTER_SECONDS = 5


class Ahead(Protocol):
    """Who makes runs ready before their turn."""

    def wake(self) -> None: ...
    def progress_of(self, run_id: str) -> Mapping[str, Progress]: ...


@dataclass(slots=True)
class _Live:
    actor: RunActor
    task: asyncio.Task[None]


class RunManager:
    """One a daemon. `ledger` knows the host's capacity; `key` is the node's own, for fingerprints.

    `failed` gets the JournalError after which the daemon has to stop.
    """

    def __init__(
        self,
        *,
        tools: Tools,
        facts: NodeFacts,
        ledger: Ledger,
        key: bytes,
        observer: Observer,
        feed: Feed,
    ) -> None:
        self.failed: asyncio.Future[JournalError] = asyncio.get_running_loop().create_future()
        self._tools = tools
        self._facts = facts
        self._rules = tools.rules
        self._ledger = ledger
        self._key = key
        self._observer = observer
        self._feed = feed
        self._live: dict[str, _Live] = {}
        self._queue: dict[str, Run] = {}
        self._waiting_by_tier: Counter[str] = Counter()
        self._turns = Turns()
        self._syncs = Syncs(tools=tools, runs=self)
        self._ahead: Ahead | None = None
        self._leaving = False

    # -- life of the manager -------------------------------------------------------------------

    async def take_up(self, runs: Sequence[Run]) -> None:
        """Runs of an earlier daemon, in order of acceptance; those that hold a slot keep it."""
        for run in runs:
            if run.state is not State.QUEUED:
                self._reserve(run)
        for run in runs:
            now = self._tools.clock.now()
            if run.state is not State.QUEUED:
                self._begin(run).post(Resumed(at=now))
            elif run.assignment.tier in self._ledger.tiers:
                self._enqueue(run)
            else:
                self._begin(run).post(Crashed(at=now, fault=tier_gone(run.assignment.tier)))
        self._admit()

    async def leave(self) -> None:
        """The daemon leaves; runs go on without it."""
        self._leaving = True
        await self._syncs.close()
        tasks = [live.task for live in self._live.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- requests --------------------------------------------------------------------------------

    async def submit(
        self, draft: AssignmentDraft, secrets: Mapping[str, str], owner_uid: int
    ) -> Submitted:
        """Durable when it returns. The same id with the same content gives the run that is here."""
        if not draft.id:
            return await self._submit(draft, secrets, owner_uid)
        async with self._turns.of(draft.id):
            return await self._submit(draft, secrets, owner_uid)

    async def _submit(
        self, draft: AssignmentDraft, secrets: Mapping[str, str], owner_uid: int
    ) -> Submitted:
        mark = fingerprint(draft, secrets, self._key)
        refusal = self._why_refused()
        known = None
        if draft.id and (refusal or secrets):
            known = await self._tools.journal.run(draft.id)
        if refusal is not None and known is None:
            raise refusal
        assignment = await assignment_of(
            draft, self._rules, secret_names=tuple(sorted(secrets)), owner_uid=owner_uid
        )
        if known is None:
            admission.check(self._ledger.tiers, self._ledger.host, assignment.tier)
            await self._tools.secrets.put(assignment.id, secrets)
        begin = accept(assignment, at=self._tools.clock.now())
        try:
            accepted = await self._tools.journal.accept(begin.run, begin.transitions[0], mark)
        except DiskFullError as error:
            raise RefusedError(
                Refusal.DISK_FULL,
                "The node's disk is full: the run cannot be recorded, so it is not accepted.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            ) from error
        if accepted.outcome == "conflict":
            raise RefusedError(
                Refusal.ID_CONFLICT,
                f"A run {draft.id} exists already and was submitted with other content.",
                pointer="/id",
            )
        if accepted.outcome == "same":
            return Submitted(run=self._known(accepted.run.id) or accepted.run, created=False)
        self._changed(accepted.run, accepted.transitions)
        self._enqueue(accepted.run)
        if self._waiting_by_tier[assignment.tier] == 1:
            self._admit()  # whoever waits behind others of its tier has to go on waiting
        return Submitted(run=accepted.run, created=True)

    async def stop(self, run_id: str, order: StopOrder) -> Run:
        """Durable when it returns; asking twice is asking once."""
        run = await self.run(run_id)
        if run.is_over:
            raise RefusedError(Refusal.RUN_OVER, f"Run {run_id} has ended already: {run.state}.")
        if self._leaving:
            raise RefusedError(Refusal.SHUTTING_DOWN, self._why_not_accepting())
        waiting = self._dequeue(run_id)
        actor = self._begin(waiting) if waiting else self._live[run_id].actor
        try:
            return await asyncio.shield(
                actor.post(StopAsked(at=self._tools.clock.now(), order=order))
            )
        except asyncio.CancelledError:
            if not self._leaving:
                raise
            raise RefusedError(Refusal.SHUTTING_DOWN, self._why_not_accepting()) from None

    async def sync(self, run_id: str, *, discard: bool = False) -> SyncReport:
        """Stored when it returns. RefusedError NOTHING_TO_SYNC where there is nothing to store."""
        return await self._syncs.sync(run_id, discard=discard)

    # -- answers ---------------------------------------------------------------------------------

    async def run(self, run_id: str) -> Run:
        run = self._known(run_id) or await self._tools.journal.run(run_id)
        if run is None:
            raise RefusedError(Refusal.UNKNOWN_RUN, f"There is no run {run_id} on this node.")
        return run

    async def runs(
        self, *, state: str | None, project: str | None, limit: int, cursor: str | None
    ) -> RunPage:
        return await self._tools.journal.runs(
            state=state, project=project, limit=limit, cursor=cursor
        )

    async def owner_of(self, run_id: str) -> int | None:
        return (await self.run(run_id)).assignment.owner_uid

    async def transitions_of(self, run_id: str) -> Sequence[Transition]:
        return await self._tools.journal.transitions_of(run_id)

    async def transitions_after(self, seq: int, limit: int) -> Sequence[Transition]:
        return await self._tools.journal.transitions_after(seq, limit)

    async def wait_for_events(self, after_seq: int, timeout_seconds: float) -> None:
        await self._feed.wait(after_seq, timeout_seconds)

    def progress_of(self, run_id: str) -> Mapping[str, Progress]:
        live = self._live.get(run_id)
        if live is None and self._ahead is not None:
            return self._ahead.progress_of(run_id)
        return dict(live.actor.progress) if live else {}

    async def usage_of(self, run_id: str) -> UsageSummary | None:
        return (await self.run(run_id)).usage

    async def usage_samples(self, run_id: str, since: float) -> Sequence[UsageSample]:
        if run_id in self._live:
            return self._tools.meters.samples(run_id, since)
        return await self._observer.kept_samples(run_id, since)

    async def changes_of(self, run_id: str) -> Sequence[FileChange]:
        return await self._tools.files.changes(await self.run(run_id))

    def queue_position(self, run_id: str) -> int | None:
        """0 is next; None when it does not wait."""
        if run_id not in self._queue:
            return None
        if next(reversed(self._queue)) == run_id:
            return len(self._queue) - 1
        return next(place for place, waiting in enumerate(self._queue) if waiting == run_id)

    def node(self) -> NodeState:
        return node_state(
            self._facts,
            self._rules,
            self._ledger,
            self._waiting(),
            why_not=self._why_not_accepting(),
        )

    def ready(self) -> tuple[bool, str]:
        why_not = self._why_not_accepting()
        return not why_not, why_not

    def next_queued(self, most: int) -> Sequence[Run]:
        """Those whose turn comes next, in order."""
        return list(islice(self._queue.values(), most))

    def live_run(self, run_id: str) -> Run | None:
        """None where it is over and clean."""
        return self._known(run_id)

    def watch_queue(self, ahead: Ahead) -> None:
        """It is woken whenever the queue has changed."""
        self._ahead = ahead
        ahead.wake()

    def actor_of(self, run_id: str) -> RunActor | None:
        live = self._live.get(run_id)
        return live.actor if live is not None and not live.task.done() else None

    def is_live(self, run_id: str) -> bool:
        return run_id in self._live or run_id in self._queue

    def live_runs(self) -> Sequence[Run]:
        return [*(live.actor.run for live in self._live.values()), *self._queue.values()]

    # -- inside ----------------------------------------------------------------------------------

    def _why_not_accepting(self) -> str:
        if self.failed.done():
            return "The journal cannot be written; the daemon is about to stop."
        if self._leaving:
            return "The daemon is leaving; ask again when it is back."
        return ""

    def _why_refused(self) -> RefusedError | None:
        """Why a run that is new cannot be taken now."""
        why_not = self._why_not_accepting()
        if why_not:
            return RefusedError(Refusal.SHUTTING_DOWN, why_not)
        if len(self._queue) >= self._rules.max_queue:
            return RefusedError(
                Refusal.QUEUE_FULL,
                f"{len(self._queue)} runs wait already (`runs.max_queue` = "
                f"{self._rules.max_queue}).",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        return None

    def _begin(self, run: Run) -> RunActor:
        actor = RunActor(run, tools=self._tools, on_change=self._changed)
        task = asyncio.create_task(actor.live(), name=f"run:{run.id}")
        self._live[run.id] = _Live(actor, task)
        task.add_done_callback(lambda done: self._gone(run.id, done))
        return actor

    def _gone(self, run_id: str, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, JournalError):
            if not self.failed.done():
                self.failed.set_result(error)
            return
        if error is not None:
            log.error("run.actor_crashed", run_id=run_id, exc_info=error)
            return
        self._observer.ended(self._live.pop(run_id).actor.run)
        self._ledger = admission.release(self._ledger, run_id)
        self._admit()

    def _admit(self) -> None:
        """Gives free slots to those whose turn it is; in memory at once, durable right after."""
        if self._leaving:
            return
        for run_id in admission.next_admissible(self._waiting(), self._ledger):
            run = self._dequeue(run_id)
            assert run is not None
            self._reserve(run)
            now = self._tools.clock.now()
            waited = max(0.0, now - run.accepted_at)
            self._begin(run).post(SlotReserved(at=now, waited_seconds=waited))

    def _waiting(self) -> Iterator[Waiting]:
        return (Waiting(run_id=r.id, tier=r.assignment.tier) for r in self._queue.values())

    def _enqueue(self, run: Run) -> None:
        """A run that waits is no more than a value; its actor begins when its turn comes."""
        self._queue[run.id] = run
        self._waiting_by_tier[run.assignment.tier] += 1
        self._queue_changed()

    def _dequeue(self, run_id: str) -> Run | None:
        run = self._queue.pop(run_id, None)
        if run is not None:
            self._waiting_by_tier[run.assignment.tier] -= 1
            self._queue_changed()
        return run

    def _queue_changed(self) -> None:
        if self._ahead is not None:
            self._ahead.wake()

    def _reserve(self, run: Run) -> None:
        """A run of an earlier daemon keeps its slot, also where its tier is no longer offered."""
        tier = run.assignment.tier
        gone = None if tier in self._ledger.tiers else Capacity(cpus=0, memory_bytes=0)
        self._ledger = admission.reserve(self._ledger, run.id, tier, holds=gone)

    def _known(self, run_id: str) -> Run | None:
        live = self._live.get(run_id)
        return live.actor.run if live else self._queue.get(run_id)

    def _changed(self, _run: Run, transitions: Sequence[Transition]) -> None:
        if transitions:
            self._observer.changed(transitions)
            self._feed.grew_to(transitions[-1].seq)

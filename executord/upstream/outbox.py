"""Delivers every transition, each run's in order, at least once, for as long as it takes.

What is not delivered is in the journal, so a death at any moment leads to a repetition at most.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from executord.core.cloudevents import CloudEvent, cloud_event
from executord.core.run import Transition
from executord.ports import Clock, DiskFullError, OutboxState
from executord.upstream.backoff import Backoff
from executord.upstream.sinks import Again, Delivered, Refused, Sink, Verdict

log = structlog.get_logger(__name__)

_EVENTS_A_BATCH = 100
_LOOK_AGAIN_SECONDS = 60.0


class Transitions(Protocol):
    """What the outbox needs of `ports.Journal`."""

    async def undelivered(self, limit: int) -> Sequence[Transition]: ...
    async def mark_delivered(self, seqs: Sequence[int]) -> None: ...
    async def park(self, run_id: str, why: str) -> None: ...
    async def outbox_state(self) -> OutboxState: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How far the upstream is behind. `seconds` is the age of the oldest waiting transition.

    `trouble` is the last reason why a delivery did not succeed, "" while all is well.
    """

    pending: int
    seconds: float
    parked_runs: tuple[str, ...]
    failures_in_a_row: int
    trouble: str


class Outbox:
    """Its owner runs `run` as a task, calls `wake` when transitions were committed, and ends it
    with `stop`, or by cancelling the task. `run` ends by itself only when the journal raises.
    """

    def __init__(
        self,
        *,
        journal: Transitions,
        sink: Sink,
        node: str,
        clock: Clock,
        draw: Callable[[], float] = random.random,
        events_a_batch: int = _EVENTS_A_BATCH,
    ) -> None:
        self._journal = journal
        self._sink = sink
        self._node = node
        self._clock = clock
        self._events_a_batch = events_a_batch
        self._backoff = Backoff(draw)
        self._work = asyncio.Event()
        self._stopping = asyncio.Event()
        self._trouble = ""

    def wake(self) -> None:
        """There is something new to deliver. Does not cut a back-off short."""
        self._work.set()

    def stop(self) -> None:
        """`run` returns once the delivery in flight has ended; what is left stays for next time."""
        self._stopping.set()
        self._work.set()

    async def lag(self) -> Lag:
        state = await self._journal.outbox_state()
        age = 0.0 if state.oldest_time is None else self._clock.now() - state.oldest_time
        return Lag(
            pending=state.pending,
            seconds=max(0.0, age),
            parked_runs=state.parked_runs,
            failures_in_a_row=self._backoff.failures,
            trouble=self._trouble,
        )

    async def run(self) -> None:
        while not self._stopping.is_set():
            self._work.clear()
            batch = await self._journal.undelivered(self._events_a_batch)
            if batch:
                await self._deliver(batch)
            elif not self._stopping.is_set():
                await _first_of(self._work, _LOOK_AGAIN_SECONDS)

    async def _deliver(self, batch: Sequence[Transition]) -> None:
        """Halves what is refused until the run that is meant stands alone."""
        parked: set[str] = set()
        pieces = deque([batch])
        while pieces and not self._stopping.is_set():
            piece = [
                transition for transition in pieces.popleft() if transition.run_id not in parked
            ]
            if not piece:
                continue
            verdict = await self._send(piece)
            match verdict:
                case Delivered():
                    await self._mark(piece)
                case Refused() if len(piece) > 1:
                    middle = len(piece) // 2
                    pieces.extendleft((piece[middle:], piece[:middle]))
                case Refused():
                    await self._park(piece[0], verdict.why)
                    parked.add(piece[0].run_id)
                case None:
                    return

    async def _send(self, piece: Sequence[Transition]) -> Delivered | Refused | None:
        """Until there is an answer that settles it; None when stopped before."""
        events = [cloud_event(self._node, transition) for transition in piece]
        while True:
            verdict = await self._try(events)
            if not isinstance(verdict, Again):
                self._settled()
                return verdict
            await self._wait(verdict)
            if self._stopping.is_set():
                return None

    async def _try(self, events: Sequence[CloudEvent]) -> Verdict:
        """A mistake in a sink must not stop the daemon, nor lose anything."""
        try:
            return await self._sink.deliver(events)
        except Exception as error:
            log.exception("upstream.sink_crashed")
            return Again(why=f"The sink made a mistake: {type(error).__name__}.")

    async def _mark(self, piece: Sequence[Transition]) -> None:
        """Not sent again while the disk is full: only the mark is tried again."""
        seqs = [transition.seq for transition in piece]
        while True:
            try:
                await self._journal.mark_delivered(seqs)
                return
            except DiskFullError as error:
                await self._wait(Again(why=str(error)))
                if self._stopping.is_set():
                    return

    async def _park(self, transition: Transition, why: str) -> None:
        log.error(
            "upstream.run_parked",
            run_id=transition.run_id,
            number=transition.number,
            why=why,
            advice="Its transitions are kept and not sent; those of other runs go on.",
        )
        while not self._stopping.is_set():
            try:
                await self._journal.park(transition.run_id, why)
                return
            except DiskFullError as error:
                await self._wait(Again(why=str(error)))

    async def _wait(self, verdict: Again) -> None:
        seconds = self._backoff.next_seconds(at_least=verdict.after_seconds)
        level = log.warning if self._backoff.failures == 1 else log.info
        level(
            "upstream.delivery_failed",
            why=verdict.why,
            failures=self._backoff.failures,
            again_in_seconds=round(seconds, 1),
        )
        self._trouble = verdict.why
        await _first_of(self._stopping, seconds)

    def _settled(self) -> None:
        if self._trouble:
            log.info("upstream.delivers_again", failures=self._backoff.failures)
        self._trouble = ""
        self._backoff.reset()


async def _first_of(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()

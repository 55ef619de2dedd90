"""The outbox on a virtual clock: hours of an upstream that is down pass in milliseconds."""

import asyncio
import random
import selectors
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from executord.core.cloudevents import CloudEvent
from executord.ports import JournalError
from executord.upstream.backoff import Backoff
from executord.upstream.outbox import Outbox
from executord.upstream.sinks import Again, Delivered, Refused, Verdict
from tests.fakes.journal import FakeJournal
from tests.fakes.lives import accepted, begun, ended, eventually, nothing_waits, scheduled

HOUR = 3600.0


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Never sleeps: where it would, its clock jumps to the next timer."""

    def __init__(self) -> None:
        self.skipped = 0.0
        super().__init__(_Skipping(self))

    def time(self) -> float:
        return self.skipped


class _Skipping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            pytest.fail("everybody waits and nothing will ever happen")
        self._loop.skipped += timeout
        return super().select(0)


class LoopClock:
    def now(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass
class FakeUpstream:
    """A sink that keeps score. `moods` says what it does with each batch, if not keep it."""

    moods: Callable[[Sequence[CloudEvent]], Verdict | None] = lambda _: None
    answer_is_lost: Callable[[], bool] = lambda: False
    seconds: float = 0.01
    tries: list[float] = field(default_factory=list)
    numbers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    seqs: list[int] = field(default_factory=list)
    repeats: int = 0
    batches: list[int] = field(default_factory=list)

    async def deliver(self, events: Sequence[CloudEvent]) -> Verdict:
        self.tries.append(asyncio.get_running_loop().time())
        self.batches.append(len(events))
        await asyncio.sleep(self.seconds)
        mood = self.moods(events)
        if mood is not None:
            return mood
        for event in events:
            data = event["data"]
            numbers = self.numbers[data["run_id"]]
            if data["number"] <= len(numbers):
                self.repeats += 1
                continue
            numbers.append(data["number"])
            self.seqs.append(data["seq"])
        return Again(why="the reply is lost") if self.answer_is_lost() else Delivered()

    async def close(self) -> None:
        """Nothing is open."""

    def check(self) -> None:
        for run_id, numbers in self.numbers.items():
            assert numbers == list(range(1, len(numbers) + 1)), run_id


@dataclass
class Scene:
    journal: FakeJournal = field(default_factory=FakeJournal)
    upstream: FakeUpstream = field(default_factory=FakeUpstream)

    def __post_init__(self) -> None:
        self.outbox = Outbox(
            journal=self.journal,
            sink=self.upstream,
            node="n",
            clock=LoopClock(),
            draw=random.Random(5).random,
            events_a_batch=10,
        )
        self.journal.subscribe(self.outbox.wake)

    async def until_delivered(self, *, within: float = HOUR) -> None:
        waits = partial(nothing_waits, self.journal)
        await eventually(waits, within_seconds=within, step=0.05)


def on_virtual_time(scenario: Callable[[Scene], Coroutine[Any, Any, None]]) -> Scene:
    """Runs the scenario beside an outbox that is stopped at its end."""
    scene = Scene()

    async def played() -> None:
        task = asyncio.create_task(scene.outbox.run())
        await scenario(scene)
        scene.outbox.stop()
        async with asyncio.timeout(120):
            await task

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(played())
    scene.upstream.check()
    return scene


def test_what_is_committed_is_delivered_at_once_and_in_order() -> None:
    async def scenario(scene: Scene) -> None:
        for number in range(30):
            await begun(scene.journal, await accepted(scene.journal, f"r-{number}"))
        await scene.until_delivered(within=1)

    scene = on_virtual_time(scenario)
    assert scene.upstream.seqs == list(range(1, 91))
    assert scene.upstream.repeats == 0
    assert max(scene.upstream.batches) == 10


def test_an_upstream_that_is_down_for_twelve_hours_misses_nothing() -> None:
    async def scenario(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        back = loop.time() + 12 * HOUR
        scene.upstream.moods = lambda _: Again(why="down") if loop.time() < back else None
        for number in range(1000):
            await begun(scene.journal, await accepted(scene.journal, f"r-{number}"))
            await asyncio.sleep(43)
        lag = await scene.outbox.lag()
        assert lag.pending > 2900
        assert lag.seconds == pytest.approx(loop.time() - 100.0, abs=1)
        assert lag.trouble == "down"
        await asyncio.sleep(back - loop.time())
        await scene.until_delivered(within=70)
        lag = await scene.outbox.lag()
        assert (lag.pending, lag.seconds, lag.trouble, lag.failures_in_a_row) == (0, 0.0, "", 0)

    scene = on_virtual_time(scenario)
    assert scene.upstream.seqs == list(range(1, 3001))
    pauses = [b - a for a, b in zip(scene.upstream.tries, scene.upstream.tries[1:], strict=False)]
    waits = [pause for pause in pauses if pause > 0.4]
    assert 12 * HOUR / 60 < len(waits) < 12 * HOUR / 20
    assert max(waits) < 61
    assert len(waits) == len(set(waits)), "without jitter nodes come back in step"


def test_new_commits_do_not_cut_a_back_off_short() -> None:
    async def scenario(scene: Scene) -> None:
        scene.upstream.moods = lambda _: Again(why="slow down", after_seconds=100)
        for number in range(100):
            await accepted(scene.journal, f"r-{number}")
            await asyncio.sleep(3)
        scene.upstream.moods = lambda _: None
        await scene.until_delivered()

    scene = on_virtual_time(scenario)
    early = [moment for moment in scene.upstream.tries if moment < 300]
    assert len(early) == 3


def test_lost_replies_lead_to_repeats_but_never_to_a_gap_or_disorder() -> None:
    async def scenario(scene: Scene) -> None:
        dice = random.Random(3)
        scene.upstream.answer_is_lost = lambda: dice.random() < 0.4
        for number in range(60):
            await begun(scene.journal, await accepted(scene.journal, f"r-{number}"))
            await asyncio.sleep(0.2)
        await scene.until_delivered()

    scene = on_virtual_time(scenario)
    assert sorted(scene.upstream.seqs) == list(range(1, 181))
    assert scene.upstream.repeats > 0


def refusing(*run_ids: str) -> Callable[[Sequence[CloudEvent]], Verdict | None]:
    def mood(events: Sequence[CloudEvent]) -> Verdict | None:
        bad = [event["subject"] for event in events if event["subject"] in run_ids]
        return Refused(why=f"400: {bad[0]} is unknown") if bad else None

    return mood


def test_a_refused_run_is_parked_and_no_other() -> None:
    async def scenario(scene: Scene) -> None:
        scene.upstream.moods = refusing("r-3", "r-11")
        runs = [await accepted(scene.journal, f"r-{n}") for n in range(15)]
        runs = [await scheduled(scene.journal, run) for run in runs]
        await scene.until_delivered()
        for run in runs:
            await ended(scene.journal, run)
        await scene.until_delivered()
        lag = await scene.outbox.lag()
        assert set(lag.parked_runs) == {"r-3", "r-11"}

    scene = on_virtual_time(scenario)
    assert set(scene.upstream.numbers) == {f"r-{n}" for n in range(15)} - {"r-3", "r-11"}
    assert all(numbers == [1, 2, 3] for numbers in scene.upstream.numbers.values())
    assert scene.upstream.repeats == 0


def test_a_run_refused_in_the_middle_of_its_life_sends_nothing_after_it() -> None:
    async def scenario(scene: Scene) -> None:
        def mood(events: Sequence[CloudEvent]) -> Verdict | None:
            third = any(e["subject"] == "bad" and e["data"]["number"] == 3 for e in events)
            return Refused(why="422") if third else None

        scene.upstream.moods = mood
        bad, good = await accepted(scene.journal, "bad"), await accepted(scene.journal, "good")
        await ended(scene.journal, await begun(scene.journal, bad))
        await ended(scene.journal, await begun(scene.journal, good))
        await scene.until_delivered()

    scene = on_virtual_time(scenario)
    assert scene.upstream.numbers == {"bad": [1, 2], "good": [1, 2, 3, 4]}
    left = list(scene.journal._undelivered)
    assert len(left) == 2


def test_trouble_in_the_middle_of_halving_starts_nothing_over() -> None:
    async def scenario(scene: Scene) -> None:
        refuse, count = refusing("r-5"), iter(range(1000))

        def mood(events: Sequence[CloudEvent]) -> Verdict | None:
            return Again(why="503") if next(count) % 2 else refuse(events)

        scene.upstream.moods = mood
        for number in range(10):
            await accepted(scene.journal, f"r-{number}")
        await scene.until_delivered()

    scene = on_virtual_time(scenario)
    assert scene.upstream.repeats == 0
    assert len(scene.upstream.seqs) == 9


def test_a_sink_that_makes_a_mistake_loses_nothing() -> None:
    async def scenario(scene: Scene) -> None:
        count = iter(range(1000))

        def mood(_: Sequence[CloudEvent]) -> Verdict | None:
            if next(count) < 3:
                raise KeyError("a bug")
            return None

        scene.upstream.moods = mood
        await begun(scene.journal, await accepted(scene.journal, "r-1"))
        await scene.until_delivered()

    assert on_virtual_time(scenario).upstream.seqs == [1, 2, 3]


def test_a_full_disk_repeats_the_mark_and_not_the_delivery() -> None:
    async def scenario(scene: Scene) -> None:
        await begun(scene.journal, await accepted(scene.journal, "r-1"))
        scene.journal.reserve_used = True
        await asyncio.sleep(HOUR)
        assert "reserve" in (await scene.outbox.lag()).trouble
        scene.journal.reserve_used = False
        await scene.until_delivered()

    scene = on_virtual_time(scenario)
    assert scene.upstream.repeats == 0
    assert len(scene.upstream.tries) == 1


def test_a_journal_that_fails_ends_the_outbox_with_its_error() -> None:
    async def scenario(scene: Scene) -> None:
        scene.journal.broken = "the disk is dead"
        scene.outbox.wake()
        await asyncio.sleep(1)

    with pytest.raises(JournalError, match="the disk is dead"):
        on_virtual_time(scenario)


def test_a_stop_in_the_middle_of_a_back_off_is_at_once() -> None:
    async def scenario(scene: Scene) -> None:
        scene.upstream.moods = lambda _: Again(why="down", after_seconds=1000)
        await accepted(scene.journal, "r-1")
        await asyncio.sleep(5)
        begun_at = asyncio.get_running_loop().time()
        scene.outbox.stop()
        await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() - begun_at < 1

    scene = on_virtual_time(scenario)
    assert len(scene.upstream.tries) == 1
    assert len(scene.journal._undelivered) == 1


def test_a_stop_lets_the_delivery_in_flight_be_marked() -> None:
    async def scenario(scene: Scene) -> None:
        scene.upstream.seconds = 20.0
        await accepted(scene.journal, "r-1")
        await asyncio.sleep(5)
        scene.outbox.stop()

    scene = on_virtual_time(scenario)
    assert scene.upstream.seqs == [1]
    assert not scene.journal._undelivered


def test_waits_grow_to_a_minute_and_stay_between_their_bounds() -> None:
    for draw, expected in ((0.0, [0.5] * 9), (1.0, [1, 2, 4, 8, 16, 32, 60, 60, 60])):
        backoff = Backoff(lambda draw=draw: draw)  # type: ignore[misc]
        assert [backoff.next_seconds(at_least=None) for _ in range(9)] == expected
    for _ in range(5000):
        assert backoff.next_seconds(at_least=None) == 60
    backoff.reset()
    assert backoff.next_seconds(at_least=7.0) == 8.0
    assert backoff.next_seconds(at_least=1e9) == 3602.0

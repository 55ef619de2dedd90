"""Queued runs made ready before their turn, and prefetches; nothing of it may reach a run."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from executord.core.reasons import Fault, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Assignment, Environment, Mount, PullPolicy, Run, StopOrder
from executord.core.states import State
from executord.runs.ahead import PrepareAhead
from executord.runs.prefetch import MAX_LIVE_JOBS, Prefetching, PrefetchJob, PrefetchWanted
from tests.fakes.parts import FakeFiles, FakeImages


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


A, B, C = ("sha256:" + letter * 64 for letter in "abc")
NO_ROOM = Fault(Reason.DISK_FULL, "There is no room.")


def queued(run_id: str, revision: str = A, **fields: object) -> Run:
    assignment = Assignment(
        id=run_id,
        project="p",
        command=("true",),
        environment=Environment(image="python:3", pull=PullPolicy.ALWAYS),
        tier="small",
        revision=revision,
    )
    return Run(
        assignment=replace(assignment, **fields),  # type: ignore[arg-type]
        state=State.QUEUED,
        accepted_at=0.0,
        state_since=0.0,
    )


class Queue:
    def __init__(self) -> None:
        self.waiting: dict[str, Run] = {}
        self.others: dict[str, Run] = {}

    def next_queued(self, most: int) -> list[Run]:
        return list(self.waiting.values())[:most]

    def live_run(self, run_id: str) -> Run | None:
        return self.waiting.get(run_id) or self.others.get(run_id)


class Node:
    def __init__(self, most: int = 2) -> None:
        self.files = FakeFiles()
        self.images = FakeImages("sha256:1")
        self.queue = Queue()
        self.why_not = ""
        self.ahead = PrepareAhead(
            files=self.files,
            images=self.images,
            queue=self.queue,
            most=most,
            why_not=lambda: self.why_not,
            look_seconds=0.01,
            again_seconds=0.05,
        )

    def enqueue(self, *runs: Run) -> None:
        self.queue.waiting |= {run.id: run for run in runs}
        self.ahead.wake()

    def begin(self, run_id: str, state: State = State.SCHEDULED) -> None:
        run = self.queue.waiting.pop(run_id, None) or self.queue.others[run_id]
        self.queue.others[run_id] = replace(run, state=state)
        self.ahead.wake()

    def detail(self, run_id: str) -> str:
        progress = self.ahead.progress_of(run_id).get("ahead")
        return progress.detail if progress else ""

    async def until_ready(self, run_id: str) -> None:
        await until(lambda: self.detail(run_id) == "ready")


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - it looks at parts that tell nobody
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    task = asyncio.create_task(node.ahead.run())
    try:
        yield node
    finally:
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()


# -- prepare-ahead ---------------------------------------------------------------------------------


async def test_the_next_queued_runs_are_made_ready_and_no_more_than_asked() -> None:
    async with running(Node(most=2)) as node:
        node.enqueue(queued("r-1", A), queued("r-2", B), queued("r-3", C))
        await node.until_ready("r-1")
        await node.until_ready("r-2")
        assert node.files.ahead == {A, B}
        assert node.ahead.progress_of("r-3") == {}
        node.begin("r-1")
        await node.until_ready("r-3")


async def test_a_runs_datasets_are_made_ready_too_each_revision_once() -> None:
    mounts = (
        Mount(source="", target="/b", revision=B),
        Mount(source="", target="/a", revision=A),
        Mount(source="/sets", target="/c"),
    )
    async with running(Node()) as node:
        node.enqueue(queued("r-1", A, mounts=mounts))
        await node.until_ready("r-1")
        assert node.files.ahead_asked == [(A, "ahead:r-1"), (B, "ahead:r-1")]


async def test_an_image_is_fetched_only_if_missing_and_never_where_that_is_forbidden() -> None:
    async with running(Node()) as node:
        never = Environment(image="secret:1", pull=PullPolicy.NEVER)
        node.enqueue(queued("r-1", A), queued("r-2", A, environment=never))
        await node.until_ready("r-1")
        await node.until_ready("r-2")
        assert node.images.provided == [("ahead:r-1", Environment(image="python:3"))]


async def test_what_is_ready_stays_held_until_the_run_stands_on_it_itself() -> None:
    async with running(Node()) as node:
        node.enqueue(queued("r-1"))
        await node.until_ready("r-1")
        for state in (State.SCHEDULED, State.PREPARING):
            node.begin("r-1", state)
            await asyncio.sleep(0.05)
            assert node.files.held == {"ahead:r-1"}
        node.begin("r-1", State.RUNNING)
        await until(lambda: node.files.held == set())
        assert node.images.released == ["ahead:r-1"]
        assert node.ahead.progress_of("r-1") == {}


async def test_a_run_that_is_stopped_while_it_waits_is_given_up() -> None:
    async with running(Node()) as node:
        node.files.readying.close()
        node.enqueue(queued("r-1"))
        await until(lambda: node.files.ahead_asked != [])
        run = node.queue.waiting.pop("r-1")
        node.queue.others["r-1"] = replace(run, stop=StopOrder())
        node.ahead.wake()
        await until(lambda: node.ahead.progress_of("r-1") == {})
        assert node.files.ahead == set()
        assert node.files.held == set()


async def test_under_pressure_nothing_is_begun_and_what_is_under_way_is_given_up() -> None:
    async with running(Node()) as node:
        node.why_not = "tasks wait for memory 40 % of the time"
        node.enqueue(queued("r-1"))
        await asyncio.sleep(0.05)
        assert node.files.ahead_asked == []
        node.why_not = ""
        node.files.readying.close()
        node.ahead.wake()
        await until(lambda: node.files.ahead_asked != [])
        node.why_not = "tasks wait for memory 40 % of the time"
        await until(lambda: "paused" in node.detail("r-1"))
        node.files.readying.open()
        node.why_not = ""
        await node.until_ready("r-1")


async def test_what_fails_is_told_tried_again_and_reaches_nobody() -> None:
    async with running(Node()) as node:
        node.files.readying.fault = NO_ROOM
        node.enqueue(queued("r-1"))
        await until(lambda: "no room" in node.detail("r-1"))
        assert node.queue.waiting["r-1"].state is State.QUEUED
        node.files.readying.fault = None
        await node.until_ready("r-1")


async def test_a_mistake_costs_one_preparation_and_not_the_part() -> None:
    async with running(Node()) as node:
        node.images.image_id = ""
        broken = queued("r-1", environment=None)
        node.enqueue(broken, queued("r-2", B))
        await node.until_ready("r-2")
        assert "log" in node.detail("r-1")


async def test_leaving_gives_everything_up() -> None:
    node = Node()
    async with running(node):
        node.enqueue(queued("r-1"), queued("r-2", B))
        await node.until_ready("r-1")
        node.files.readying.close()
    assert node.files.held == set()
    assert sorted(node.images.released) == ["ahead:r-1", "ahead:r-2"]


# -- prefetch --------------------------------------------------------------------------------------


class Prefetches:
    def __init__(self, **changes: float) -> None:
        self.files = FakeFiles()
        self.images = FakeImages("sha256:1")
        self.why_not = ""
        self.part = Prefetching(
            files=self.files,
            images=self.images,
            clock=SystemClock(),
            why_not=lambda: self.why_not,
            default_image="default:1",
            **changes,
        )

    def job(self, job_id: str) -> PrefetchJob:
        return next(job for job in self.part.jobs() if job.id == job_id)

    async def ended(self, job_id: str) -> PrefetchJob:
        await until(lambda: self.job(job_id).state != "working")
        return self.job(job_id)


@pytest.fixture
async def prefetches() -> AsyncIterator[Prefetches]:
    made = Prefetches()
    yield made
    await made.part.close()
    assert made.files.held == set()


WANTED = PrefetchWanted(revisions=(A, B, A), environments=(Environment(image="python:3"),))


async def test_a_prefetch_makes_everything_ready_and_holds_it(prefetches: Prefetches) -> None:
    begun = await prefetches.part.prefetch(WANTED)
    assert begun.state == "working"
    job = await prefetches.ended(begun.id)
    assert job.state == "ready"
    assert [(item.kind, item.name, item.way) for item in job.items] == [
        ("revision", A, "farm"),
        ("revision", B, "farm"),
        ("image", "python:3", "local"),
    ]
    assert job.held_until is not None
    assert len(prefetches.files.held) == 2


async def test_where_everything_is_here_it_has_ended_when_it_is_answered(
    prefetches: Prefetches,
) -> None:
    prefetches.files.ahead = {A, B}
    prefetches.images.here = {"python:3"}
    job = await prefetches.part.prefetch(WANTED)
    assert job.state == "ready"
    assert {item.way for item in job.items} == {"snapshot", "local"}


async def test_one_item_that_cannot_be_had_costs_the_others_nothing(
    prefetches: Prefetches,
) -> None:
    prefetches.images.providing.fault = Fault(Reason.IMAGE_NOT_FOUND, "There is no such image.")
    job = await prefetches.ended((await prefetches.part.prefetch(WANTED)).id)
    assert job.state == "incomplete"
    assert [item.state for item in job.items] == ["ready", "ready", "failed"]
    assert job.items[2].reason is Reason.IMAGE_NOT_FOUND
    assert "no such image" in job.items[2].detail


async def test_for_want_of_room_it_is_dropped_and_says_so(prefetches: Prefetches) -> None:
    prefetches.files.readying.fault = NO_ROOM
    job = await prefetches.ended((await prefetches.part.prefetch(WANTED)).id)
    assert [(item.state, item.detail) for item in job.items[:2]] == [
        ("dropped", "There is no room.")
    ] * 2


async def test_after_its_grace_nothing_is_held_any_more() -> None:
    made = Prefetches(grace_seconds=0.05)
    await made.ended((await made.part.prefetch(WANTED)).id)
    await until(lambda: made.files.held == set() and made.images.released != [])
    await made.part.close()


async def test_under_pressure_it_waits_and_gives_up_in_the_end() -> None:
    made = Prefetches(patience_seconds=0.1)
    made.why_not = "tasks wait for the disk 90 % of the time"
    begun = await made.part.prefetch(PrefetchWanted(revisions=(A,)))
    await until(lambda: "paused" in made.job(begun.id).items[0].detail)
    job = await made.ended(begun.id)
    assert job.items[0].state == "dropped"
    assert "wait for the disk" in job.items[0].detail
    assert made.files.ahead_asked == []
    await made.part.close()


async def test_an_environment_without_an_image_gets_the_nodes_own(prefetches: Prefetches) -> None:
    wanted = PrefetchWanted(environments=(Environment(image="", dockerfile="RUN true"),))
    await prefetches.ended((await prefetches.part.prefetch(wanted)).id)
    assert [asked.image for _, asked in prefetches.images.provided] == ["default:1"]


async def test_more_than_a_node_can_have_under_way_are_refused(prefetches: Prefetches) -> None:
    prefetches.files.readying.close()
    for number in range(MAX_LIVE_JOBS):
        revision = f"sha256:{number:064x}"
        await prefetches.part.prefetch(PrefetchWanted(revisions=(revision,)))
    with pytest.raises(RefusedError) as caught:
        await prefetches.part.prefetch(WANTED)
    assert caught.value.code is Refusal.QUEUE_FULL


async def test_a_daemon_that_leaves_takes_no_more_of_them(prefetches: Prefetches) -> None:
    prefetches.files.readying.close()
    await prefetches.part.prefetch(WANTED)
    await prefetches.part.close()
    with pytest.raises(RefusedError) as caught:
        await prefetches.part.prefetch(WANTED)
    assert caught.value.code is Refusal.SHUTTING_DOWN

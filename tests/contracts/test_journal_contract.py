"""What every journal keeps to: the one in memory that other tests use, and the one on disk."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from executord.core.messages import Crashed, SlotReserved
from executord.core.reasons import Fault, Reason
from executord.core.run import Result, Stage, StageCost
from executord.core.states import State
from executord.journal.journal import SqliteJournal
from executord.ports import Journal, JournalError
from tests.fakes.journal import FakeJournal
from tests.fakes.lives import SteppedClock, accepted, begun, ended, going_on, new_run, scheduled


@pytest.fixture(params=["fake", "sqlite"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Journal]:
    if request.param == "fake":
        yield FakeJournal()
        return
    journal = SqliteJournal(tmp_path / "journal.sqlite", clock=SteppedClock())
    await journal.open()
    yield journal
    await journal.close()


async def test_a_new_run_is_kept_with_its_first_transition(journal: Journal) -> None:
    step = new_run("r-1")
    answer = await journal.accept(step.run, step.transitions[0], "f")
    assert answer.outcome == "new"
    assert answer.run == step.run
    assert answer.transitions == (replace(step.transitions[0], seq=1),)
    assert await journal.run("r-1") == step.run
    assert await journal.transitions_of("r-1") == list(answer.transitions)


async def test_the_same_id_and_content_is_the_same_run_as_it_is_now(journal: Journal) -> None:
    run = await begun(journal, await accepted(journal, "r-1"))
    step = new_run("r-1", at=500.0)
    answer = await journal.accept(step.run, step.transitions[0], "fingerprint")
    assert answer.outcome == "same"
    assert answer.run == run
    assert answer.transitions == ()
    assert await journal.last_seq() == 3


async def test_the_same_id_with_other_content_is_a_conflict_and_changes_nothing(
    journal: Journal,
) -> None:
    run = await accepted(journal, "r-1")
    step = new_run("r-1", project="bob/other")
    answer = await journal.accept(step.run, step.transitions[0], "another")
    assert answer.outcome == "conflict"
    assert await journal.run("r-1") == run
    assert await journal.last_seq() == 1


async def test_a_run_survives_with_everything_that_is_known_of_it(journal: Journal) -> None:
    run = await accepted(journal, "r-1")
    fault = Fault(
        Reason.DISK_FULL, "No space under /x.", {"free_bytes": 0, "ratio": 0.5, "a": None}
    )
    costs = (StageCost(stage=Stage.PREPARE, seconds=0.25, files_fetched=3, way="farm"),)
    result = Result(revision="sha256:1", added=2, skipped=("a fifo",), diagnostics={"r2": [0.5, 1]})
    run = replace(run, fault=fault, costs=costs, result=result, pending_costs=costs)
    run, (transition,) = await going_on(journal, run, Crashed(at=5.5, fault=fault))
    assert await journal.run("r-1") == run
    assert transition.costs == costs
    assert (await journal.transitions_of("r-1"))[-1] == transition


async def test_transitions_are_numbered_by_run_and_by_node_without_gaps(journal: Journal) -> None:
    one = await accepted(journal, "r-1")
    two = await accepted(journal, "r-2")
    one, two = await begun(journal, one), await scheduled(journal, two)
    told = await journal.transitions_after(0, 100)
    assert [each.seq for each in told] == [1, 2, 3, 4, 5]
    assert [(each.run_id, each.number) for each in told] == [
        ("r-1", 1),
        ("r-2", 1),
        ("r-1", 2),
        ("r-1", 3),
        ("r-2", 2),
    ]
    assert [each.seq for each in await journal.transitions_after(2, 2)] == [3, 4]
    assert await journal.transitions_after(5, 10) == []


async def test_a_transition_that_does_not_go_on_from_the_last_is_refused_whole(
    journal: Journal,
) -> None:
    run = await accepted(journal, "r-1")
    stale = run
    run = await begun(journal, run)
    with pytest.raises(JournalError):
        await going_on(journal, stale, SlotReserved(at=9.0, waited_seconds=0.0))
    skipping = replace(run, transitions=7)
    with pytest.raises(JournalError):
        await journal.commit(skipping, [])
    assert await journal.run("r-1") == run
    assert await journal.last_seq() == 3


async def test_a_run_that_was_never_accepted_cannot_be_committed(journal: Journal) -> None:
    step = new_run("r-1")
    with pytest.raises(JournalError):
        await going_on(journal, step.run, SlotReserved(at=9.0, waited_seconds=0.0))
    assert await journal.run("r-1") is None
    assert await journal.last_seq() == 0


async def test_a_refused_unit_does_not_spoil_those_beside_it(journal: Journal) -> None:
    runs = [await accepted(journal, f"r-{n}") for n in range(20)]
    stale = runs[7]
    runs[7] = await scheduled(journal, runs[7])
    answers = await asyncio.gather(
        *(scheduled(journal, run) for run in [*runs[:7], stale, *runs[8:]]),
        return_exceptions=True,
    )
    failed = [n for n, answer in enumerate(answers) if isinstance(answer, Exception)]
    assert failed == [7]
    assert isinstance(answers[7], JournalError)
    told = await journal.transitions_after(0, 100)
    assert [each.seq for each in told] == list(range(1, 41))


async def test_an_update_without_a_transition_is_kept(journal: Journal) -> None:
    run = replace(await accepted(journal, "r-1"), attempt=3)
    assert await journal.commit(run, []) == ()
    assert await journal.run("r-1") == run


async def test_unfinished_are_the_live_and_the_unclean_in_order_of_acceptance(
    journal: Journal,
) -> None:
    runs = [await accepted(journal, f"r-{n}") for n in (3, 1, 2, 0)]
    await ended(journal, runs[1])
    unclean = await ended(journal, runs[2], clean=False)
    last = await begun(journal, runs[3])
    assert list(await journal.unfinished_runs()) == [runs[0], unclean, last]


async def test_runs_are_listed_newest_first_page_by_page(journal: Journal) -> None:
    for number in range(7):
        await accepted(journal, f"r-{number}")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await journal.runs(state=None, project=None, limit=3, cursor=cursor)
        seen += [run.id for run in page.runs]
        await accepted(journal, f"later-{len(seen)}")
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page.runs) == 3
    assert seen == [f"r-{number}" for number in reversed(range(7))]


async def test_runs_are_found_by_state_and_project(journal: Journal) -> None:
    for number in range(6):
        run = await accepted(journal, f"r-{number}", project=f"p-{number % 2}")
        if number >= 2:
            await begun(journal, run)

    async def found(state: str | None, project: str | None) -> list[str]:
        page = await journal.runs(state=state, project=project, limit=10, cursor=None)
        return [run.id for run in page.runs]

    assert await found("Queued", None) == ["r-1", "r-0"]
    assert await found(None, "p-1") == ["r-5", "r-3", "r-1"]
    assert await found("Preparing", "p-0") == ["r-4", "r-2"]
    assert await found("Nonsense", None) == []


@pytest.mark.parametrize(
    "cursor", ["", "x", "before-", "cnVucy1iZWZvcmU6LTE", "ä", "AAAA", "=" * 9]
)
async def test_a_cursor_that_no_page_gave_out_is_a_value_error(
    journal: Journal, cursor: str
) -> None:
    with pytest.raises(ValueError, match="cursor"):
        await journal.runs(state=None, project=None, limit=3, cursor=cursor)


async def test_what_is_marked_delivered_is_not_waiting_any_more(journal: Journal) -> None:
    run = await begun(journal, await accepted(journal, "r-1"))
    assert [each.seq for each in await journal.undelivered(2)] == [1, 2]
    await journal.mark_delivered([1, 2])
    await journal.mark_delivered([1])
    assert [each.seq for each in await journal.undelivered(10)] == [3]
    state = await journal.outbox_state()
    assert (state.pending, state.oldest_time, state.parked_runs) == (1, 102.0, ())
    assert [each.seq for each in await journal.transitions_of(run.id)] == [1, 2, 3]


async def test_a_parked_run_is_left_out_also_with_what_it_reports_later(journal: Journal) -> None:
    one, two = await accepted(journal, "r-1"), await accepted(journal, "r-2")
    await journal.park("r-1", "400: no such run")
    await journal.park("r-1", "another reason")
    await begun(journal, one)
    await begun(journal, two)
    assert {each.run_id for each in await journal.undelivered(10)} == {"r-2"}
    state = await journal.outbox_state()
    assert (state.pending, state.parked_runs) == (3, ("r-1",))


async def test_an_empty_outbox_has_no_oldest_transition(journal: Journal) -> None:
    state = await journal.outbox_state()
    assert (state.pending, state.oldest_time, state.parked_runs) == (0, None, ())


async def test_facts_are_kept_replaced_and_deleted_by_kind_and_key(journal: Journal) -> None:
    await journal.put_fact("image", "a", {"used": 1, "by": ["r-1"], "deep": {"x": None}})
    await journal.put_fact("image", "b", {"used": 2})
    await journal.put_fact("usage", "a", {})
    await journal.put_fact("image", "a", {"used": 3})
    assert await journal.facts("image") == {"a": {"used": 3}, "b": {"used": 2}}
    await journal.delete_fact("image", "a")
    await journal.delete_fact("image", "never")
    assert await journal.facts("image") == {"b": {"used": 2}}
    assert await journal.fact("usage", "a") == {}
    assert await journal.fact("image", "a") is None
    assert await journal.facts("nothing") == {}


async def test_only_old_ended_clean_and_reported_runs_are_forgotten(journal: Journal) -> None:
    runs = {name: await accepted(journal, name) for name in ("old", "dirty", "live", "new", "mute")}
    await ended(journal, runs["old"], at=110.0)
    await ended(journal, runs["dirty"], at=110.0, clean=False)
    await ended(journal, runs["new"], at=900.0)
    await journal.mark_delivered([each.seq for each in await journal.undelivered(100)])
    await ended(journal, runs["mute"], at=110.0)
    spared = await journal.forget_before(runs_before=500.0, events_before=0.0, spared=["x", "old"])
    assert list(spared) == []
    dropped = await journal.forget_before(runs_before=500.0, events_before=0.0)
    assert list(dropped) == ["old"]
    assert await journal.run("old") is None
    left = await journal.runs(state=None, project=None, limit=10, cursor=None)
    assert {run.id for run in left.runs} == {"dirty", "live", "new", "mute"}
    assert len(await journal.transitions_of("old")) == 2


async def test_old_events_are_forgotten_but_for_live_runs_and_what_waits(journal: Journal) -> None:
    old, live, mute = [await accepted(journal, name) for name in ("old", "live", "mute")]
    await ended(journal, old, at=110.0)
    await journal.mark_delivered([each.seq for each in await journal.undelivered(100)])
    await ended(journal, mute, at=111.0)
    assert await journal.forget_before(runs_before=0.0, events_before=500.0) == []
    left = [(each.run_id, each.number) for each in await journal.transitions_after(0, 100)]
    assert left == [("live", 1), ("mute", 2)]
    assert live.state is State.QUEUED


async def test_the_node_wide_number_goes_on_when_every_event_is_forgotten(journal: Journal) -> None:
    await ended(journal, await accepted(journal, "r-1"))
    await journal.mark_delivered([1, 2])
    await journal.forget_before(runs_before=1e9, events_before=1e9)
    assert await journal.transitions_after(0, 10) == []
    assert await journal.last_seq() == 2
    await accepted(journal, "r-2")
    assert [each.seq for each in await journal.transitions_after(0, 10)] == [3]


@pytest.mark.parametrize("events_before", [0.0, 105.0, 1e9])
async def test_the_id_of_a_forgotten_run_can_be_used_again(
    journal: Journal, events_before: float
) -> None:
    await ended(journal, await begun(journal, await accepted(journal, "r-1")))
    await journal.mark_delivered([1, 2, 3, 4])
    dropped = await journal.forget_before(runs_before=1e9, events_before=events_before)
    assert list(dropped) == ["r-1"]
    await ended(journal, await begun(journal, await accepted(journal, "r-1")))
    told = await journal.transitions_of("r-1")
    assert [(each.number, each.seq) for each in told] == [(1, 5), (2, 6), (3, 7), (4, 8)]


async def test_a_cancelled_caller_leaves_the_write_whole(journal: Journal) -> None:
    run = await accepted(journal, "r-1")
    tasks = [asyncio.create_task(accepted(journal, f"c-{n}")) for n in range(50)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await scheduled(journal, run)
    told = await journal.transitions_after(0, 1000)
    assert [each.seq for each in told] == list(range(1, len(told) + 1))
    for each in told:
        assert await journal.run(each.run_id) is not None


async def test_after_it_is_closed_nothing_can_be_promised(journal: Journal) -> None:
    run = await accepted(journal, "r-1")
    await journal.close()  # type: ignore[attr-defined]
    with pytest.raises(JournalError):
        await scheduled(journal, run)
    with pytest.raises(JournalError):
        await journal.run("r-1")

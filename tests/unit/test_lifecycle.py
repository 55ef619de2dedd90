"""The lifecycle as a whole: every way through it that matters, and that no other one exists."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executord.core import messages as m
from executord.core.lifecycle import TABLE, ImpossibleEventError, Step, accept, step
from executord.core.reasons import MEANINGS, Fault, Reason, Side
from executord.core.run import (
    Assignment,
    Container,
    Environment,
    Evidence,
    Image,
    ImagePhase,
    KeepOn,
    Result,
    Results,
    Run,
    Stage,
    StageCost,
    StopOrder,
    Workspace,
)
from executord.core.states import MAY_GO_TO, State

WORKSPACE = Workspace(volume="v", tree="sha256:t", base_revision="sha256:r", way="snapshot")
IMAGE = Image(id="sha256:i", reference="python:3")
STORE_AWAY = Fault(Reason.STORE_UNAVAILABLE, "The store does not answer.")
NO_IMAGE = Fault(Reason.IMAGE_NOT_FOUND, "No such image.")


def assignment(**changes: Any) -> Assignment:
    base = Assignment(
        id="r-1",
        project="alice/churn",
        command=("true",),
        environment=Environment(image="python:3"),
        tier="small",
    )
    return replace(base, **changes)


class Life:
    """Plays events to a run and remembers what came of them."""

    def __init__(self, **changes: Any) -> None:
        first = accept(assignment(**changes), at=0.0)
        self.run: Run = first.run
        self.transitions = list(first.transitions)
        self.commands: list[m.Command] = []
        self.time = 0.0

    def play(self, kind: type[m.Event], **values: Any) -> "Life":
        self.time += 1.0
        if issubclass(kind, m.StageEvent):
            values.setdefault("attempt", self.run.attempt)
        outcome = step(self.run, kind(at=self.time, **values))
        self.run = outcome.run
        self.transitions += outcome.transitions
        self.commands = list(outcome.commands)
        return self

    def states(self) -> list[State]:
        return [transition.to_state for transition in self.transitions]

    def asked_for(self, kind: type[m.Command]) -> bool:
        return any(isinstance(command, kind) for command in self.commands)

    # the usual way, piece by piece

    def preparing(self) -> "Life":
        return self.play(m.SlotReserved, waited_seconds=2.0).play(m.Begun)

    def running(self) -> "Life":
        self.preparing().play(m.FilesReady, workspace=WORKSPACE)
        return self.play(m.ImageReady, image=IMAGE)

    def ended(self, **evidence: Any) -> "Life":
        evidence = {"exit_code": 0, **evidence}
        return self.play(m.ContainerEnded, evidence=Evidence(**evidence))

    def kept(self) -> "Life":
        return self.play(m.FilesKept, result=Result(revision="sha256:n", head="moved"))

    def stopping(self, **order: Any) -> "Life":
        self.play(m.StopAsked, order=StopOrder(**order))
        return self.play(m.StopBegun)


def test_a_run_that_needs_nothing_fetched_shows_no_stage_for_it() -> None:
    life = Life().running().ended().kept()
    assert life.states() == [
        State.QUEUED,
        State.SCHEDULED,
        State.PREPARING,
        State.RUNNING,
        State.FINISHING,
        State.SUCCEEDED,
    ]
    assert life.run.reason is Reason.COMPLETED


def test_an_image_that_is_built_is_shown_once_the_files_are_ready() -> None:
    life = Life().preparing().play(m.ImagePhaseBegun, phase=ImagePhase.BUILDING)
    assert life.states()[-1] is State.PREPARING
    life.play(m.FilesReady, workspace=WORKSPACE).play(m.ImageReady, image=IMAGE)
    assert life.states()[-2:] == [State.BUILDING, State.RUNNING]


def test_an_image_that_is_there_before_the_files_is_never_shown_as_pulled() -> None:
    life = Life().preparing().play(m.ImagePhaseBegun, phase=ImagePhase.PULLING)
    life.play(m.ImageReady, image=IMAGE).play(m.FilesReady, workspace=WORKSPACE)
    assert State.PULLING not in life.states()
    assert life.run.state is State.RUNNING


def test_numbers_have_no_gaps_and_each_transition_leaves_where_the_last_one_arrived() -> None:
    life = Life().running().ended(exit_code=3).kept()
    assert [t.number for t in life.transitions] == list(range(1, len(life.transitions) + 1))
    pairs = zip(life.transitions, life.transitions[1:], strict=False)
    assert all(before.to_state is after.from_state for before, after in pairs)


def test_costs_are_reported_exactly_once_with_the_next_transition() -> None:
    prepared = StageCost(stage=Stage.PREPARE, seconds=0.5, files_from_cache=7)
    pulled = StageCost(stage=Stage.PULL, seconds=1.5, bytes_fetched=9)
    life = Life().preparing()
    life.play(m.ImageReady, image=IMAGE, costs=(pulled,))
    life.play(m.FilesReady, workspace=WORKSPACE, costs=(prepared,))
    to_running = life.transitions[-1]
    assert to_running.costs == (pulled, prepared)
    life.ended().kept()
    reported = [cost for t in life.transitions for cost in t.costs]
    assert reported.count(prepared) == reported.count(pulled) == 1


def test_a_nonzero_exit_is_failed_and_its_files_are_kept() -> None:
    life = Life().running().ended(exit_code=3)
    assert life.commands == [m.KeepFiles(attempt=1, keep=True)]
    life.kept()
    assert life.run.state is State.FAILED
    assert life.run.reason is Reason.EXIT_CODE


def test_files_are_not_kept_after_an_end_that_was_not_asked_for() -> None:
    life = Life(keep_on=frozenset({KeepOn.SUCCEEDED})).running().ended(exit_code=3)
    assert life.commands == [m.KeepFiles(attempt=1, keep=False)]


def test_a_missing_image_is_the_users_fault_and_is_shown_by_way_of_pulling() -> None:
    life = Life().preparing().play(m.StageFailed, stage=Stage.IMAGE, fault=NO_IMAGE)
    assert life.run.state is State.PREPARING
    assert life.commands == [m.CancelStages(attempt=1, stages=frozenset({Stage.PREPARE}))]
    life.play(m.StageCancelled, stage=Stage.PREPARE)
    assert life.states()[-2:] == [State.PULLING, State.FAILED]


def test_the_first_fault_wins() -> None:
    life = Life().preparing().play(m.StageFailed, stage=Stage.PREPARE, fault=STORE_AWAY)
    life.play(m.StageFailed, stage=Stage.IMAGE, fault=NO_IMAGE)
    assert life.run.state is State.ERROR
    assert life.run.reason is Reason.STORE_UNAVAILABLE


def test_an_image_that_arrives_after_the_files_failed_starts_nothing() -> None:
    life = Life().preparing().play(m.StageFailed, stage=Stage.PREPARE, fault=STORE_AWAY)
    life.play(m.ImageReady, image=IMAGE)
    assert life.run.state is State.ERROR
    assert not life.asked_for(m.Execute)


def test_a_stop_while_preparing_never_starts_the_container() -> None:
    life = Life().preparing().stopping()
    life.play(m.FilesReady, workspace=WORKSPACE)
    assert not life.asked_for(m.Execute)
    life.play(m.ImageReady, image=IMAGE)
    assert not life.asked_for(m.Execute)
    assert life.states()[-2:] == [State.STOPPING, State.STOPPED]


def test_a_stop_of_a_queued_run_ends_it_at_once() -> None:
    life = Life().stopping()
    assert life.states() == [State.QUEUED, State.STOP_REQUESTED, State.STOPPING, State.STOPPED]


def test_a_stop_while_running_ends_the_container_and_keeps_its_files() -> None:
    life = Life().running().stopping(grace_seconds=3.0)
    assert life.commands == [m.EndContainer(attempt=1, grace_seconds=3.0)]
    life.ended(exit_code=143)
    assert life.asked_for(m.KeepFiles)
    life.kept()
    assert life.run.state is State.STOPPED
    assert life.run.result is not None


def test_a_stop_that_discards_keeps_nothing() -> None:
    life = Life().running().stopping(results=Results.DISCARD).ended(exit_code=143)
    assert life.run.state is State.STOPPED
    assert not life.asked_for(m.KeepFiles)


def test_an_exit_that_races_the_stop_still_has_its_files_kept() -> None:
    life = Life().running().play(m.StopAsked, order=StopOrder()).ended()
    life.play(m.StopBegun)
    assert life.asked_for(m.KeepFiles)
    life.kept()
    assert life.run.state is State.STOPPED


def test_a_stop_while_finishing_lets_the_files_arrive() -> None:
    life = Life().running().ended().stopping()
    assert not life.asked_for(m.CancelStages)
    life.kept()
    assert life.run.state is State.STOPPED


def test_a_discarding_stop_while_finishing_cancels_the_upload() -> None:
    life = Life().running().ended().stopping(results=Results.DISCARD)
    assert life.commands == [m.CancelStages(attempt=1, stages=frozenset({Stage.FINISH}))]
    life.play(m.StageCancelled, stage=Stage.FINISH)
    assert life.run.state is State.STOPPED


def test_a_second_stop_changes_nothing() -> None:
    life = Life().running().stopping()
    before = life.run
    life.play(m.StopAsked, order=StopOrder(results=Results.DISCARD))
    assert life.run == before
    assert life.commands == []


def test_a_used_up_time_limit_ends_in_failed_whatever_the_exit_code() -> None:
    life = Life().running().play(m.TimeLimitReached, grace_seconds=5.0)
    assert life.commands == [m.EndContainer(attempt=1, grace_seconds=5.0)]
    life.ended(exit_code=0).kept()
    assert life.run.state is State.FAILED
    assert life.run.reason is Reason.RUN_SECONDS_EXCEEDED


def test_files_that_cannot_be_sent_are_an_error_that_keeps_the_workspace() -> None:
    life = Life().running().ended(exit_code=3)
    life.play(m.StageFailed, stage=Stage.FINISH, fault=STORE_AWAY)
    assert life.run.state is State.ERROR
    assert life.run.evidence is not None
    assert life.run.evidence.exit_code == 3
    assert life.commands == [m.CleanUp(attempt=1, keep_workspace=True)]


def test_a_lost_container_is_an_error_that_keeps_the_workspace() -> None:
    life = Life().running().ended(exit_code=None, container_missing=True)
    assert life.run.reason is Reason.CONTAINER_LOST
    assert life.commands == [m.CleanUp(attempt=1, keep_workspace=True)]


def test_a_stop_asked_of_a_run_whose_engine_refuses_to_end_it_is_an_error() -> None:
    refused = Fault(Reason.ENGINE_REFUSED, "No.")
    life = Life().running().stopping().play(m.StageFailed, stage=Stage.RUN, fault=refused)
    assert life.run.state is State.ERROR


def test_a_late_event_of_an_earlier_attempt_changes_nothing() -> None:
    life = Life().preparing().play(m.Resumed)
    before = life.run
    life.play(m.FilesReady, workspace=WORKSPACE, attempt=1)
    assert life.run == before


def brought_to(until: str) -> Life:
    match until:
        case "preparing":
            return Life().preparing()
        case "running":
            return Life().running()
        case "finishing":
            return Life().running().ended()
        case "stopping":
            return Life().running().stopping()
        case _:
            return Life().running().ended().kept()


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("preparing", {m.PrepareFiles, m.ProvideImage}),
        ("running", {m.Execute}),
        ("finishing", {m.KeepFiles}),
        ("stopping", {m.Execute, m.EndContainer}),
        ("over", {m.CleanUp}),
    ],
)
def test_a_resumed_run_asks_again_for_what_was_in_flight(
    until: str, expected: set[type[m.Command]]
) -> None:
    life = brought_to(until)
    life.play(m.Resumed)
    assert {type(command) for command in life.commands} == expected
    assert all(command.attempt == 2 for command in life.commands)


def test_a_run_resumed_after_its_time_limit_is_ended_again() -> None:
    life = Life().running().play(m.TimeLimitReached, grace_seconds=5.0).play(m.Resumed)
    assert m.EndContainer(attempt=2, grace_seconds=5.0) in life.commands


def test_a_doomed_run_that_is_resumed_prepares_nothing() -> None:
    life = Life().preparing().play(m.StageFailed, stage=Stage.IMAGE, fault=NO_IMAGE)
    life.play(m.Resumed)
    assert {type(command) for command in life.commands} == {m.CancelStages}


def test_a_mistake_of_the_daemon_costs_the_run_and_cleans_up() -> None:
    life = Life().running().play(m.Crashed, fault=Fault(Reason.INTERNAL, "KeyError: x"))
    assert life.run.state is State.ERROR
    assert life.asked_for(m.CleanUp)


def test_a_run_is_clean_only_after_cleaning_up() -> None:
    life = Life().running().ended().kept()
    assert not life.run.clean
    assert life.play(m.CleanedUp).run.clean


def test_every_reason_has_a_meaning_and_the_users_and_the_platforms_say_what_to_do() -> None:
    assert set(MEANINGS) == set(Reason)
    assert all(meaning.advice for meaning in MEANINGS.values() if meaning.side is not Side.NOBODY)


def test_an_event_without_a_row_raises() -> None:
    with pytest.raises(ImpossibleEventError, match="FilesKept while Queued"):
        Life().kept()


def test_every_state_takes_a_stop_a_crash_and_a_resume() -> None:
    for state in State:
        for event in (m.StopAsked, m.Crashed, m.Resumed):
            assert (state, event) in TABLE


# -- No way leads off the table --------------------------------------------------------------------

FAULTS = st.sampled_from([STORE_AWAY, NO_IMAGE, Fault(Reason.INTERNAL, "x")])


def events_for(run: Run) -> st.SearchStrategy[m.Event]:
    """Events that the stages in flight, a user, or a restart could cause now."""
    stage_values = {"at": st.just(1.0), "attempt": st.just(run.attempt)}
    choices: list[st.SearchStrategy[m.Event]] = [
        st.builds(
            m.StopAsked,
            at=st.just(1.0),
            order=st.builds(StopOrder, results=st.sampled_from(Results)),
        ),
        st.builds(m.Resumed, at=st.just(1.0)),
    ]
    if run.state is State.QUEUED:
        choices.append(st.builds(m.SlotReserved, at=st.just(1.0), waited_seconds=st.just(0.0)))
    if run.state is State.SCHEDULED:
        choices.append(st.builds(m.Begun, at=st.just(1.0)))
    if run.state is State.STOP_REQUESTED:
        choices.append(st.builds(m.StopBegun, at=st.just(1.0)))
    endings: dict[Stage, st.SearchStrategy[m.Event]] = {
        Stage.PREPARE: st.builds(m.FilesReady, workspace=st.just(WORKSPACE), **stage_values),
        Stage.IMAGE: st.builds(m.ImageReady, image=st.just(IMAGE), **stage_values),
        Stage.RUN: st.builds(
            m.ContainerEnded,
            evidence=st.builds(
                Evidence,
                exit_code=st.sampled_from([0, 1, 137, 143, None]),
                oom_killed=st.booleans(),
                container_missing=st.booleans(),
            ),
            **stage_values,
        ),
        Stage.FINISH: st.builds(m.FilesKept, result=st.just(Result()), **stage_values),
        Stage.CLEAN_UP: st.builds(m.CleanedUp, **stage_values),
    }
    for stage in sorted(run.in_flight):
        choices.append(endings[stage])
        if stage is not Stage.CLEAN_UP:
            choices.append(
                st.builds(m.StageFailed, stage=st.just(stage), fault=FAULTS, **stage_values)
            )
    if Stage.IMAGE in run.in_flight:
        choices.append(
            st.builds(m.ImagePhaseBegun, phase=st.sampled_from(ImagePhase), **stage_values)
        )
    if Stage.RUN in run.in_flight:
        container = st.just(Container(id="c"))
        choices.append(st.builds(m.ContainerStarted, container=container, **stage_values))
        choices.append(st.builds(m.TimeLimitReached, grace_seconds=st.just(1.0), **stage_values))
    return st.one_of(choices)


def check_step(before: Run, outcome: Step) -> None:
    number = before.transitions
    state = before.state
    for transition in outcome.transitions:
        number += 1
        assert transition.number == number
        assert transition.from_state is state
        assert transition.to_state in MAY_GO_TO[state]
        state = transition.to_state
    assert outcome.run.state is state
    assert outcome.run.transitions == number
    if outcome.run.is_over:
        assert outcome.run.reason is not None
        assert outcome.run.ended_at is not None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_sequence_of_possible_events_leaves_the_table(data: st.DataObject) -> None:
    run = accept(assignment(), at=0.0).run
    for _ in range(25):
        if run.clean:
            break
        cancelled: set[Stage] = set()
        outcome = step(run, data.draw(events_for(run)))
        check_step(run, outcome)
        run = outcome.run
        for command in outcome.commands:
            if isinstance(command, m.CancelStages):
                cancelled |= command.stages
        for stage in sorted(cancelled & run.in_flight):
            event = m.StageCancelled(at=1.0, attempt=run.attempt, stage=stage)
            outcome = step(run, event)
            check_step(run, outcome)
            run = outcome.run


def last_word_of(stage: Stage, attempt: int) -> m.StageEvent:
    """What a stage reports once a stop was asked: only files and image can be cancelled."""
    if stage in (Stage.PREPARE, Stage.IMAGE):
        return m.StageCancelled(at=3.0, attempt=attempt, stage=stage)
    if stage is Stage.RUN:
        return m.ContainerEnded(at=3.0, attempt=attempt, evidence=Evidence(exit_code=143))
    return m.FilesKept(at=3.0, attempt=attempt, result=Result())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_run_can_be_brought_to_an_end_from_wherever_it_is(data: st.DataObject) -> None:
    run = accept(assignment(), at=0.0).run
    for _ in range(data.draw(st.integers(0, 12))):
        if run.is_over:
            break
        run = step(run, data.draw(events_for(run))).run
    if not run.is_over and run.state not in (State.STOP_REQUESTED, State.STOPPING):
        run = step(run, m.StopAsked(at=2.0, order=StopOrder())).run
    if run.state is State.STOP_REQUESTED:
        run = step(run, m.StopBegun(at=2.0)).run
    while not run.is_over:
        assert run.in_flight, f"{run.state} waits for nothing"
        run = step(run, last_word_of(min(run.in_flight), run.attempt)).run
    assert Stage.CLEAN_UP in run.in_flight

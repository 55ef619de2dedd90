"""Storing files while a run goes on, and of runs that have ended, while everything goes wrong."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executord.core.reasons import Fault, FaultError, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import MAX_SYNCS, Results, Run, StopOrder
from executord.core.states import State
from executord.runs.kept import Settling
from tests.fakes.engine_containers import FakeContainer
from tests.fakes.engine_programs import SLEEPS_FOR_EVER, Script
from tests.unit.test_runs import Node, eventually

STORE_AWAY = Fault(Reason.STORE_UNAVAILABLE, "The store does not answer.")
NO_ANSWER = Fault(Reason.ENGINE_UNAVAILABLE, "The engine does not answer.")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.start()
    yield node
    await node.manager.leave()
    await node.engine.close()


async def running(node: Node, program: Script = SLEEPS_FOR_EVER) -> Run:
    node.engine.default_program = program
    run = await node.submit("work")
    await eventually(lambda: started(node, run.id))
    return await node.manager.run(run.id)


async def started(node: Node, run_id: str) -> bool:
    container = (await node.manager.run(run_id)).container
    return container is not None and container.started_at is not None


def container_of(node: Node) -> FakeContainer:
    (container,) = node.engine.containers.values()
    return container


async def refused(node: Node, run_id: str, *, discard: bool = False) -> str:
    with pytest.raises(RefusedError) as caught:
        await node.manager.sync(run_id, discard=discard)
    assert caught.value.code is Refusal.NOTHING_TO_SYNC
    return caught.value.detail


async def test_a_running_run_stands_still_only_while_its_files_are_copied(node: Node) -> None:
    run = await running(node)
    node.files.copying.close()
    node.files.keeping.close()
    syncing = asyncio.create_task(node.manager.sync(run.id))
    await eventually(lambda: container_of(node).state == "paused")
    await asyncio.sleep(0.05)
    node.files.copying.open()
    await eventually(lambda: container_of(node).state == "running")
    assert not syncing.done()
    node.files.keeping.open()
    report = await syncing
    assert report.mid_run
    assert report.paused_seconds >= 0.05
    after = await node.manager.run(run.id)
    assert (after.state, after.sync_count) == (State.RUNNING, 1)
    (sync,) = after.syncs
    assert (sync.result, sync.paused_seconds, sync.way) == (
        report.result,
        report.paused_seconds,
        "copy",
    )
    assert (await node.journal.run(run.id)) == after


async def test_a_sync_makes_no_transition(node: Node) -> None:
    run = await running(node)
    before = await node.states(run.id)
    await node.manager.sync(run.id)
    assert await node.states(run.id) == before


async def test_many_syncs_are_counted_and_the_last_ones_kept(node: Node) -> None:
    run = await running(node)
    for _ in range(MAX_SYNCS + 3):
        await node.manager.sync(run.id)
    after = await node.manager.run(run.id)
    assert (after.sync_count, len(after.syncs)) == (MAX_SYNCS + 3, MAX_SYNCS)


async def test_two_syncs_at_once_take_turns(node: Node) -> None:
    run = await running(node)
    node.files.keeping.close()
    first = asyncio.create_task(node.manager.sync(run.id))
    second = asyncio.create_task(node.manager.sync(run.id))
    await asyncio.sleep(0.05)
    node.files.keeping.open()
    await asyncio.gather(first, second)
    assert (await node.manager.run(run.id)).sync_count == 2
    assert [run_id for run_id, _ in node.files.synced] == [run.id, run.id]


@pytest.mark.parametrize("gate", ["copying", "keeping"])
async def test_a_store_or_a_disk_that_fails_leaves_the_run_going(node: Node, gate: str) -> None:
    run = await running(node)
    getattr(node.files, gate).fault = STORE_AWAY
    with pytest.raises(FaultError) as caught:
        await node.manager.sync(run.id)
    assert "The run goes on" in caught.value.fault.detail
    assert f"repeat `executorctl sync {run.id}`" in caught.value.fault.detail
    assert container_of(node).state == "running"
    after = await node.manager.run(run.id)
    assert (after.state, after.syncs) == (State.RUNNING, ())
    getattr(node.files, gate).fault = None
    assert (await node.manager.sync(run.id)).mid_run


async def test_an_asker_who_goes_away_does_not_leave_the_run_standing_still(node: Node) -> None:
    run = await running(node)
    node.files.copying.close()
    asking = asyncio.create_task(node.manager.sync(run.id))
    await eventually(lambda: container_of(node).state == "paused")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    node.files.copying.open()
    await eventually(lambda: container_of(node).state == "running")
    await eventually(lambda: len(node.files.synced) == 1)


async def test_a_daemon_that_leaves_resumes_what_stood_still(node: Node) -> None:
    run = await running(node)
    node.files.copying.close()
    asking = asyncio.create_task(node.manager.sync(run.id))
    await eventually(lambda: container_of(node).state == "paused")
    await node.manager.leave()
    assert container_of(node).state == "running"
    with pytest.raises(RefusedError) as caught:
        await asking
    assert caught.value.code is Refusal.SHUTTING_DOWN
    node.files.copying.open()
    await node.start()
    assert (await node.manager.run(run.id)).state is State.RUNNING


async def test_what_an_earlier_daemon_left_standing_still_is_resumed(node: Node) -> None:
    run = await running(node)
    await node.manager.leave()
    container_of(node).state = "paused"
    await node.start()
    await eventually(lambda: container_of(node).state == "running")
    assert (await node.manager.run(run.id)).state is State.RUNNING


async def test_resuming_is_asked_for_until_the_engine_answers(node: Node) -> None:
    run = await running(node)
    node.engine.fail_next("unpause_container", NO_ANSWER, times=2)
    await node.manager.sync(run.id)
    assert container_of(node).state == "running"


@pytest.mark.parametrize("method", ["inspect_container", "unpause_container"])
async def test_a_lost_reply_never_leaves_the_run_standing_still(node: Node, method: str) -> None:
    run = await running(node)
    node.files.copying.close()
    syncing = asyncio.create_task(node.manager.sync(run.id))
    await eventually(lambda: node.engine.calls["pause_container"] == 1)
    node.engine.lose_reply_of(method)
    node.files.copying.open()
    await asyncio.gather(syncing, return_exceptions=True)
    assert container_of(node).state == "running"
    assert (await node.manager.sync(run.id)).mid_run


async def test_a_pause_whose_reply_is_lost_is_undone(node: Node) -> None:
    run = await running(node)
    node.engine.lose_reply_of("pause_container")
    with pytest.raises(FaultError):
        await node.manager.sync(run.id)
    assert container_of(node).state == "running"
    assert node.engine.calls["unpause_container"] == 1


async def test_a_stop_during_the_copy_wins_and_nothing_of_it_is_stored(node: Node) -> None:
    run = await running(node)
    node.files.copying.close()
    asking = asyncio.create_task(refused(node, run.id))
    await eventually(lambda: container_of(node).state == "paused")
    await node.manager.stop(run.id, StopOrder(grace_seconds=0.1))
    await eventually(lambda: container_of(node).state == "exited")
    node.files.copying.open()
    assert "ended" in await asking
    ended = await node.ended(run.id)
    assert (ended.state, ended.sync_count, node.files.kept[run.id]) == (State.STOPPED, 0, 1)


async def test_an_end_waits_for_a_sync_under_way_and_comes_after_it(node: Node) -> None:
    over = asyncio.Event()
    run = await running(node, Script(until=over))
    node.files.keeping.close()
    syncing = asyncio.create_task(node.manager.sync(run.id))
    await eventually(lambda: node.engine.calls["unpause_container"] == 1)
    over.set()
    await node.until(run.id, State.FINISHING)
    await asyncio.sleep(0.05)
    assert node.files.kept[run.id] == 0
    node.files.keeping.open()
    assert (await syncing).mid_run
    ended = await node.ended(run.id)
    assert (ended.state, ended.sync_count, node.files.kept[run.id]) == (State.SUCCEEDED, 1, 1)


async def test_what_does_not_run_has_nothing_to_sync(node: Node) -> None:
    node.files.preparing.close()
    run = await node.submit("work")
    await node.until(run.id, State.PREPARING)
    assert "no command running yet" in await refused(node, run.id)
    node.files.preparing.open()
    await node.ended(run.id)
    assert "nothing of it waits" in await refused(node, run.id)
    with pytest.raises(RefusedError) as caught:
        await node.manager.sync("r-none")
    assert caught.value.code is Refusal.UNKNOWN_RUN


async def test_a_run_that_is_stopped_to_be_discarded_is_not_said_to_be_stored(node: Node) -> None:
    run = await running(node)
    await node.manager.stop(run.id, StopOrder(grace_seconds=30, results=Results.DISCARD))
    await node.until(run.id, State.STOPPING)
    detail = await refused(node, run.id)
    assert "nothing is stored" in detail
    assert "at its end" not in detail


async def test_a_running_run_has_nothing_to_give_up(node: Node) -> None:
    run = await running(node)
    assert "goes on" in await refused(node, run.id, discard=True)
    assert container_of(node).state == "running"


# -- runs that have ended --------------------------------------------------------------------------


async def kept_run(node: Node) -> Run:
    """Its end could not be stored."""
    node.files.keeping.fault = STORE_AWAY
    run = await node.submit("work")
    ended = await node.ended(run.id)
    await eventually(lambda: node.manager.actor_of(run.id) is None)
    node.files.keeping.fault = None
    assert (ended.state, ended.reason) == (State.ERROR, Reason.STORE_UNAVAILABLE)
    assert ended.keeps_workspace
    assert node.files.kept_workspaces == {run.id}
    return ended


async def test_what_an_end_could_not_store_is_stored_later(node: Node) -> None:
    run = await kept_run(node)
    explanation = run.explanation()
    assert explanation is not None
    assert f"`executorctl sync {run.id}` stores them" in explanation.advice
    states = await node.states(run.id)
    report = await node.manager.sync(run.id)
    assert not report.mid_run
    after = await node.manager.run(run.id)
    assert after.result == report.result
    assert (after.state, after.reason) == (run.state, run.reason)
    assert await node.states(run.id) == states
    assert not after.keeps_workspace
    assert node.files.kept_workspaces == set()
    explanation = after.explanation()
    assert explanation is not None
    assert "executorctl sync" not in explanation.advice
    assert "nothing of it waits" in await refused(node, run.id)


async def test_it_is_stored_also_by_a_later_daemon(node: Node) -> None:
    run = await kept_run(node)
    await node.restart()
    assert not (await node.manager.sync(run.id)).mid_run
    assert (await node.manager.run(run.id)).result is not None


async def settle(node: Node) -> None:
    await Settling(files=node.files, runs=node.manager).settle()


async def test_what_is_left_of_a_sync_that_was_recorded_and_not_tidied_up_goes(node: Node) -> None:
    run = await kept_run(node)
    await node.manager.sync(run.id)
    node.files.kept_workspaces.add(run.id)  # as if killed in between
    await settle(node)
    assert node.files.kept_workspaces == set()


async def test_a_kept_workspace_without_changes_goes_by_itself_and_the_run_says_so(
    node: Node,
) -> None:
    run = await kept_run(node)
    node.files.empty.add(run.id)
    await settle(node)
    assert node.files.kept_workspaces == set()
    after = await node.manager.run(run.id)
    assert (after.keeps_workspace, after.result is not None) == (False, True)


async def test_what_is_kept_stays_as_long_as_nobody_decides(node: Node) -> None:
    run = await kept_run(node)
    node.files.kept_workspaces.add("r-unknown")
    await settle(node)
    assert node.files.kept_workspaces == {run.id, "r-unknown"}
    assert (await node.manager.run(run.id)).keeps_workspace


async def test_one_that_cannot_be_settled_now_keeps_no_other_from_it(node: Node) -> None:
    first, second = await kept_run(node), None
    node.files.kept_workspaces.clear()
    second = await kept_run(node)
    node.files.kept_workspaces = {first.id, second.id}
    node.files.empty = {first.id}
    node.files.keeping.fault = STORE_AWAY
    await node.manager.sync(second.id, discard=True)
    node.files.kept_workspaces.add(second.id)
    await settle(node)
    assert node.files.kept_workspaces == {first.id}


async def test_a_store_that_is_still_away_loses_nothing(node: Node) -> None:
    run = await kept_run(node)
    node.files.keeping.fault = STORE_AWAY
    with pytest.raises(FaultError) as caught:
        await node.manager.sync(run.id)
    assert "still kept on this node" in caught.value.fault.detail
    assert f"repeat `executorctl sync {run.id}`" in caught.value.fault.detail
    assert (await node.manager.run(run.id)).keeps_workspace
    assert node.files.kept_workspaces == {run.id}


async def test_what_was_kept_can_be_given_up(node: Node) -> None:
    run = await kept_run(node)
    report = await node.manager.sync(run.id, discard=True)
    assert report.result.head == "not_kept"
    assert not (await node.manager.run(run.id)).keeps_workspace
    assert node.files.kept_workspaces == set()
    assert node.files.kept[run.id] == 0
    assert "nothing of it waits" in await refused(node, run.id)

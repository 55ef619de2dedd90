"""Runs from submit to end with everything around them in memory, and made to misbehave."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from executord.core.admission import Capacity, Ledger, Tier
from executord.core.reasons import Fault, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import (
    Environment,
    ImagePhase,
    Mount,
    Results,
    Run,
    Stage,
    StageCost,
    StopOrder,
    Transition,
)
from executord.core.states import State
from executord.runs.context import RunRules, Tools
from executord.runs.describe import NodeFacts
from executord.runs.drafts import AssignmentDraft
from executord.runs.feed import Feed
from executord.runs.manager import RunManager
from executord.runs.observer import Observer
from executord.runs.secrets import SecretFiles
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_programs import SLEEPS_FOR_EVER, Script
from tests.fakes.journal import FakeJournal
from tests.fakes.parts import FakeConsoles, FakeFiles, FakeImages, FakeMeters

IMAGE_ID = "sha256:" + "1" * 64
UNAVAILABLE = Fault(Reason.ENGINE_UNAVAILABLE, "The engine does not answer.")


class SystemClock:
    def now(self) -> float:
        import time  # noqa: PLC0415

        return time.time()

    def monotonic(self) -> float:
        import time  # noqa: PLC0415

        return time.monotonic()


class NoMetrics:
    def transition(self, transition: Transition) -> None:
        assert transition.seq > 0

    def costs(self, costs: Sequence[StageCost]) -> None:
        assert [cost.stage for cost in costs] == [Stage.CLEAN_UP]


@dataclass
class Node:
    """The parts that outlive a daemon, and a way to start one daemon after another on them."""

    directory: Path
    slots: int = 2
    max_queue: int = 100
    allowed_mounts: tuple[Path, ...] = ()
    boot_id: str = "boot-1"
    tier: str = "small"
    engine: FakeEngine = field(init=False)
    journal: FakeJournal = field(default_factory=FakeJournal)
    files: FakeFiles = field(default_factory=FakeFiles)
    images: FakeImages = field(default_factory=lambda: FakeImages(IMAGE_ID))
    consoles: FakeConsoles = field(default_factory=FakeConsoles)
    meters: FakeMeters = field(default_factory=FakeMeters)
    manager: RunManager = field(init=False)

    def __post_init__(self) -> None:
        self.engine = FakeEngine(root=self.directory, deadline_seconds=0.05)
        self.engine.images.add("python:3", image_id=IMAGE_ID)

    async def start(self) -> RunManager:
        tier = Tier(name=self.tier, cpus=1, memory_bytes=64 << 20, max_runs=self.slots)
        rules = RunRules(
            node="n",
            instance="1234abcd",
            working_dir="/mnt",
            user=(1000, 1000),
            network="bridge",
            pids_limit=100,
            stop_grace_seconds=0.1,
            console_limit_bytes=1 << 20,
            tiers={self.tier: tier},
            default_tier=self.tier,
            max_queue=self.max_queue,
            allowed_mounts=self.allowed_mounts,
            boot_id=self.boot_id,
        )
        tools = Tools(
            engine=self.engine,
            files=self.files,
            images=self.images,
            consoles=self.consoles,
            meters=self.meters,
            journal=self.journal,
            clock=SystemClock(),
            secrets=SecretFiles(directory=self.directory / "secrets", user=(0, 0)),
            rules=rules,
        )
        observer = Observer(
            journal=self.journal,
            metrics=NoMetrics(),
            restore_samples=lambda _: (),
        )
        self.manager = RunManager(
            tools=tools,
            facts=NodeFacts(start="s", version="0", started_at=0.0, store_url="", engine=None),
            ledger=Ledger(host=Capacity(cpus=8, memory_bytes=8 << 30), tiers=rules.tiers),
            key=b"k",
            observer=observer,
            feed=Feed(await self.journal.last_seq()),
        )
        await self.manager.take_up(await self.journal.unfinished_runs())
        return self.manager

    async def restart(self) -> RunManager:
        await self.manager.leave()
        return await self.start()

    async def submit(self, *command: str, **fields: Any) -> Run:
        secrets = fields.pop("secrets", {})
        environment = fields.pop("environment", Environment(image="python:3"))
        draft = AssignmentDraft(command=command or ("true",), environment=environment, **fields)
        return (await self.manager.submit(draft, secrets, 1000)).run

    async def states(self, run_id: str) -> list[State]:
        return [each.to_state for each in await self.journal.transitions_of(run_id)]

    async def until(self, run_id: str, *states: State) -> Run:
        async with asyncio.timeout(10):
            while True:
                run = await self.manager.run(run_id)
                if run.state in states:
                    return run
                await asyncio.sleep(0.005)

    async def ended(self, run_id: str) -> Run:
        """Over and clean."""
        async with asyncio.timeout(10):
            while True:
                run = await self.manager.run(run_id)
                if run.clean and run_id not in {each.id for each in self.manager.live_runs()}:
                    return run
                await asyncio.sleep(0.005)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.start()
    yield node
    await node.manager.leave()
    await node.engine.close()


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


async def collecting(node: Node, run: Run) -> None:
    """Its container runs and is watched."""
    await eventually(lambda: run.id in node.consoles.collecting)


# -- the working directory -------------------------------------------------------------------------


async def test_a_container_that_does_not_see_the_runs_directory_is_ended_as_an_error(
    node: Node,
) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    node.files.unmounted = Fault(Reason.WORKSPACE_FAILED, "It was started without.")
    run = await node.submit()
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.ERROR, Reason.WORKSPACE_FAILED)
    assert not node.engine.containers
    assert not node.files.kept


# -- the engine misbehaves -------------------------------------------------------------------------


async def test_an_engine_that_hangs_while_a_run_executes_changes_no_state(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    run = await node.submit()
    await node.until(run.id, State.RUNNING)
    await collecting(node, run)
    before = await node.states(run.id)
    node.engine.hang()
    await node.engine.restart(live_restore=True)
    await asyncio.sleep(0.3)
    assert await node.states(run.id) == before
    node.engine.answer_again()
    await node.manager.stop(run.id, StopOrder(grace_seconds=0.0))
    assert (await node.ended(run.id)).state is State.STOPPED


async def test_a_create_whose_reply_is_lost_does_not_make_a_second_container(node: Node) -> None:
    node.engine.lose_reply_of("create_container")
    run = await node.submit()
    assert (await node.ended(run.id)).state is State.SUCCEEDED
    assert sum(node.engine.starts.values()) == 1
    assert node.engine.containers == {}


async def test_a_start_whose_reply_is_lost_is_not_an_error(node: Node) -> None:
    node.engine.lose_reply_of("start_container")
    run = await node.submit()
    assert (await node.ended(run.id)).state is State.SUCCEEDED
    assert sum(node.engine.starts.values()) == 1


async def test_a_start_that_was_never_carried_out_is_not_asked_for_twice(node: Node) -> None:
    node.engine.fail_next("start_container", UNAVAILABLE)
    run = await node.submit()
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.ERROR, Reason.ENGINE_UNAVAILABLE)
    assert node.engine.calls["start_container"] == 1


async def test_a_lost_watch_of_a_running_container_is_taken_up_again(node: Node) -> None:
    over = asyncio.Event()
    node.engine.default_program = Script(until=over, exit_code=4)
    run = await node.submit()
    await collecting(node, run)
    await node.engine.restart(live_restore=True)
    await asyncio.sleep(0.2)
    over.set()
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.EXIT_CODE)


async def test_a_container_removed_by_a_stranger_is_lost_and_not_made_again(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    run = await node.submit()
    await collecting(node, run)
    await node.engine.remove_by_a_stranger(next(iter(node.engine.containers)))
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.ERROR, Reason.CONTAINER_LOST)
    assert sum(node.engine.starts.values()) == 1
    assert run.id in node.files.kept_workspaces


async def test_a_refused_create_is_an_error_with_the_engines_word(node: Node) -> None:
    node.engine.fail_next("create_container", Fault(Reason.ENGINE_REFUSED, "no space left"))
    run = await node.submit()
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.ERROR, Reason.ENGINE_REFUSED)
    assert "no space left" in (ended.fault.detail if ended.fault else "")


async def test_a_missing_command_is_the_users_side(node: Node) -> None:
    fault = Fault(Reason.COMMAND_NOT_FOUND, "exec: nope: not found")
    node.engine.fail_next("start_container", fault)
    run = await node.submit("nope")
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.COMMAND_NOT_FOUND)
    assert ended.evidence is not None
    assert ended.evidence.exit_code == 127


async def test_cleaning_up_is_tried_until_the_engine_lets_it(node: Node) -> None:
    node.engine.fail_next("remove_container", UNAVAILABLE, times=2)
    run = await node.submit()
    await node.ended(run.id)
    assert node.engine.containers == {}


# -- stops -----------------------------------------------------------------------------------------


async def test_a_stop_before_the_container_is_made_makes_none(node: Node) -> None:
    node.files.preparing.close()
    run = await node.submit()
    await node.until(run.id, State.PREPARING)
    await node.manager.stop(run.id, StopOrder())
    ended = await node.ended(run.id)
    assert ended.state is State.STOPPED
    assert node.engine.calls["create_container"] == 0


async def test_a_stop_while_the_container_is_created_ends_in_stopped(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    gate = node.engine.hold("create_container")
    run = await node.submit()
    await node.until(run.id, State.RUNNING)
    await node.manager.stop(run.id, StopOrder(grace_seconds=0.05))
    gate.set()
    assert (await node.ended(run.id)).state is State.STOPPED


async def test_a_run_that_ignores_sigterm_is_killed_after_its_grace(node: Node) -> None:
    node.engine.default_program = Script(seconds=1000, ignores=frozenset({"SIGTERM"}))
    run = await node.submit()
    await collecting(node, run)
    await node.manager.stop(run.id, StopOrder(grace_seconds=0.1))
    assert (await node.ended(run.id)).state is State.STOPPED
    assert [signal for _, signal in node.engine.signals][:2] == ["SIGTERM", "SIGKILL"]


async def test_a_container_that_a_stranger_renamed_is_stopped_and_removed(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    run = await node.submit()
    await collecting(node, run)
    for container in node.engine.containers.values():
        container.spec = replace(container.spec, name="renamed")
    await node.manager.stop(run.id, StopOrder(grace_seconds=0.05))
    assert (await node.ended(run.id)).state is State.STOPPED
    assert node.engine.containers == {}


async def test_a_refused_signal_does_not_stop_the_stop(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    refusal = Fault(Reason.ENGINE_REFUSED, "cannot kill container")
    node.engine.fail_next("signal_container", refusal)
    run = await node.submit()
    await collecting(node, run)
    await node.manager.stop(run.id, StopOrder(grace_seconds=0.05))
    assert (await node.ended(run.id)).state is State.STOPPED


async def test_files_of_a_stopped_run_are_kept_and_of_a_discarded_one_not(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    for results, kept in ((Results.KEEP, 1), (Results.DISCARD, 0)):
        run = await node.submit()
        await collecting(node, run)
        await node.manager.stop(run.id, StopOrder(results=results, grace_seconds=0.0))
        await node.ended(run.id)
        assert node.files.kept[run.id] == kept


async def test_a_stop_of_a_waiting_run_frees_its_place_in_the_queue(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    busy = [await node.submit() for _ in range(node.slots)]
    waiting = await node.submit()
    assert node.manager.queue_position(waiting.id) == 0
    await node.manager.stop(waiting.id, StopOrder())
    assert (await node.ended(waiting.id)).state is State.STOPPED
    assert node.manager.queue_position(waiting.id) is None
    for run in busy:
        await node.manager.stop(run.id, StopOrder(grace_seconds=0.0))


async def test_a_used_up_time_limit_is_failed(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    run = await node.submit(run_seconds=0.05)
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.RUN_SECONDS_EXCEEDED)


# -- restarts --------------------------------------------------------------------------------------


async def test_a_run_that_executes_is_adopted_and_not_started_again(node: Node) -> None:
    over = asyncio.Event()
    node.engine.default_program = Script(until=over)
    run = await node.submit()
    await collecting(node, run)
    await node.restart()
    over.set()
    ended = await node.ended(run.id)
    assert ended.state is State.SUCCEEDED
    assert ended.attempt == 2
    assert sum(node.engine.starts.values()) == 1


async def test_a_watch_that_the_engine_refuses_at_first_does_not_end_the_run(node: Node) -> None:
    over = asyncio.Event()
    node.engine.default_program = Script(until=over)
    run = await node.submit()
    await collecting(node, run)
    await node.manager.leave()
    node.engine.fail_next("watch_exit", UNAVAILABLE, times=2)
    await node.start()
    await asyncio.sleep(0.1)
    assert (await node.manager.run(run.id)).state is State.RUNNING
    over.set()
    assert (await node.ended(run.id)).state is State.SUCCEEDED


async def test_an_exit_while_no_daemon_was_there_is_found(node: Node) -> None:
    over = asyncio.Event()
    node.engine.default_program = Script(until=over, exit_code=9)
    run = await node.submit()
    await collecting(node, run)
    await node.manager.leave()
    over.set()
    await asyncio.sleep(0.05)
    await node.start()
    ended = await node.ended(run.id)
    assert (ended.state, ended.evidence and ended.evidence.exit_code) == (State.FAILED, 9)


async def test_a_container_that_vanished_over_a_restart_is_not_made_again(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    run = await node.submit()
    await collecting(node, run)
    await node.manager.leave()
    await node.engine.remove_by_a_stranger(next(iter(node.engine.containers)))
    await node.start()
    ended = await node.ended(run.id)
    assert ended.reason is Reason.CONTAINER_LOST
    assert sum(node.engine.starts.values()) == 1


async def test_an_exit_with_0_across_a_reboot_is_not_believed(node: Node) -> None:
    over = asyncio.Event()
    node.engine.default_program = Script(until=over)
    run = await node.submit()
    await collecting(node, run)
    await node.manager.leave()
    over.set()
    await asyncio.sleep(0.05)
    node.boot_id = "boot-2"
    await node.start()
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.ERROR, Reason.ENGINE_RESTARTED)


async def test_waiting_runs_keep_their_order_over_a_restart(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    ids = [(await node.submit(id=f"r{n}")).id for n in range(5)]
    for run_id in ids[: node.slots]:
        await node.until(run_id, State.RUNNING)
    await node.restart()
    assert [node.manager.queue_position(run_id) for run_id in ids[2:]] == [0, 1, 2]


async def test_a_waiting_run_whose_tier_is_gone_after_a_restart_says_so(node: Node) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    ids = [(await node.submit()).id for _ in range(node.slots + 1)]
    await node.until(ids[0], State.RUNNING)
    await node.manager.leave()
    node.tier = "other"
    await node.start()
    ended = await node.ended(ids[-1])
    assert (ended.state, ended.reason) == (State.ERROR, Reason.TIER_GONE)
    await node.manager.stop(ids[0], StopOrder(grace_seconds=0.0))
    assert (await node.ended(ids[0])).state is State.STOPPED


async def test_a_preparing_run_is_prepared_again_after_a_restart(node: Node) -> None:
    node.files.preparing.close()
    run = await node.submit()
    await node.until(run.id, State.PREPARING)
    await node.manager.leave()
    node.files.preparing.open()
    await node.start()
    assert (await node.ended(run.id)).state is State.SUCCEEDED


async def test_a_stop_that_was_asked_before_a_restart_is_carried_out_after_it(node: Node) -> None:
    node.engine.default_program = Script(seconds=1000, ignores=frozenset({"SIGTERM"}))
    run = await node.submit()
    await collecting(node, run)
    await node.manager.stop(run.id, StopOrder(grace_seconds=60))
    await node.manager.leave()
    for container in node.engine.containers.values():
        container.process.handlers.clear() if container.process else None
    await node.start()
    assert (await node.ended(run.id)).state is State.STOPPED


async def test_files_that_were_being_kept_are_kept_after_a_restart(node: Node) -> None:
    node.files.keeping.close()
    run = await node.submit()
    await node.until(run.id, State.FINISHING)
    await node.manager.leave()
    node.files.keeping.open()
    await node.start()
    assert (await node.ended(run.id)).state is State.SUCCEEDED
    assert sum(node.engine.starts.values()) == 1


# -- files and images ------------------------------------------------------------------------------


async def test_a_store_that_is_away_keeps_the_workspace(node: Node) -> None:
    node.files.keeping.fault = Fault(Reason.STORE_UNAVAILABLE, "away")
    run = await node.submit()
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.ERROR, Reason.STORE_UNAVAILABLE)
    assert run.id in node.files.kept_workspaces


async def test_building_is_shown_and_its_output_is_on_the_console(node: Node) -> None:
    node.images.phase = ImagePhase.BUILDING
    node.images.providing.close()
    run = await node.submit()
    await node.until(run.id, State.BUILDING)
    node.images.providing.open()
    await node.ended(run.id)
    assert State.BUILDING in await node.states(run.id)
    assert [record.data for record in node.consoles.records[run.id]] == [b"building\n"]


async def test_a_bug_in_a_stage_costs_that_run_only(node: Node) -> None:
    node.meters.broken = True
    run = await node.submit()
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.ERROR, Reason.INTERNAL)
    node.meters.broken = False
    assert (await node.ended((await node.submit()).id)).state is State.SUCCEEDED


# -- intake ----------------------------------------------------------------------------------------


async def test_the_same_id_and_content_give_one_run_also_after_a_restart(node: Node) -> None:
    first = await node.submit(id="a")
    again = await node.submit(id="a")
    assert again.id == first.id
    await node.ended("a")
    await node.restart()
    assert (await node.submit(id="a")).state is State.SUCCEEDED
    assert sum(node.engine.starts.values()) == 1
    with pytest.raises(RefusedError) as refused:
        await node.submit("false", id="a")
    assert refused.value.code is Refusal.ID_CONFLICT


async def test_an_id_submitted_many_times_at_once_is_one_run(node: Node) -> None:
    await asyncio.gather(*(node.submit(id="a") for _ in range(20)))
    await node.ended("a")
    assert sum(node.engine.starts.values()) == 1


async def test_another_secret_under_the_same_id_is_another_content(node: Node) -> None:
    await node.submit(id="a", secrets={"T": "one"})
    with pytest.raises(RefusedError) as refused:
        await node.submit(id="a", secrets={"T": "two"})
    assert refused.value.code is Refusal.ID_CONFLICT


async def test_secrets_lie_in_files_while_the_run_lives_and_are_gone_afterwards(
    node: Node,
) -> None:
    node.engine.default_program = SLEEPS_FOR_EVER
    run = await node.submit(secrets={"TOKEN": "hush"})
    await collecting(node, run)
    secret = node.directory / "secrets" / run.id / "TOKEN"
    assert secret.read_text() == "hush"
    assert secret.stat().st_mode & 0o777 == 0o400
    await node.manager.stop(run.id, StopOrder(grace_seconds=0.0))
    await node.ended(run.id)
    assert not secret.exists()
    assert "hush" not in repr(await node.manager.run(run.id))


async def test_lost_secrets_are_an_error_that_says_so(node: Node) -> None:
    node.files.preparing.close()
    run = await node.submit(secrets={"TOKEN": "hush"})
    (node.directory / "secrets" / run.id / "TOKEN").unlink()
    node.files.preparing.open()
    ended = await node.ended(run.id)
    assert (ended.state, ended.reason) == (State.ERROR, Reason.SECRETS_LOST)


async def test_a_full_queue_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    node = Node(tmp_path, slots=1, max_queue=1)
    await node.start()
    node.engine.default_program = SLEEPS_FOR_EVER
    await node.submit()
    await node.submit()
    with pytest.raises(RefusedError) as refused:
        await node.submit()
    assert refused.value.code is Refusal.QUEUE_FULL
    assert refused.value.retry_after_seconds
    await node.manager.leave()
    await node.engine.close()


async def test_a_link_out_of_the_allowed_roots_is_no_way_around_them(tmp_path: Path) -> None:
    allowed = tmp_path / "data"
    allowed.mkdir()
    (allowed / "escape").symlink_to("/etc")
    node = Node(tmp_path, allowed_mounts=(allowed,))
    await node.start()
    with pytest.raises(RefusedError) as refused:
        await node.submit(mounts=(Mount(source=f"{allowed}/escape", target="/data"),))
    assert refused.value.code is Refusal.MOUNT_NOT_ALLOWED
    run = await node.submit(mounts=(Mount(source=str(allowed), target="/data"),))
    assert (await node.ended(run.id)).state is State.SUCCEEDED
    await node.manager.leave()


async def test_no_more_runs_hold_a_slot_than_the_tier_has(node: Node) -> None:
    over = asyncio.Event()
    node.engine.default_program = Script(until=over)
    ids = [(await node.submit()).id for _ in range(6)]
    await eventually(lambda: len(node.engine.containers) == node.slots)
    await asyncio.sleep(0.05)
    assert len(node.engine.containers) == node.slots
    over.set()
    for run_id in ids:
        assert (await node.ended(run_id)).state is State.SUCCEEDED


async def test_followers_are_woken_by_what_happens(node: Node) -> None:
    last = await node.journal.last_seq()
    waiting = asyncio.create_task(node.manager.wait_for_events(last, 5))
    await asyncio.sleep(0)
    run = await node.submit()
    await asyncio.wait_for(waiting, 1)
    await node.ended(run.id)
    assert [each.seq for each in await node.manager.transitions_after(last, 100)][:1] == [last + 1]


async def test_an_unknown_run_is_refused_and_an_ended_one_cannot_be_stopped(node: Node) -> None:
    with pytest.raises(RefusedError) as refused:
        await node.manager.run("nobody")
    assert refused.value.code is Refusal.UNKNOWN_RUN
    run = await node.submit()
    await node.ended(run.id)
    with pytest.raises(RefusedError) as refused:
        await node.manager.stop(run.id, StopOrder())
    assert refused.value.code is Refusal.RUN_OVER

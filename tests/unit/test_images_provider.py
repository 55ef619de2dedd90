"""Which way an environment's image comes, who shares the work, and what it is said to cost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from executord.core.reasons import Fault, FaultError, Reason
from executord.core.run import Environment, ImagePhase, PullPolicy, Stage
from executord.images.provider import ImageProvider
from executord.ports import Progress, Provided
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_images import RemoteImage
from tests.fakes.facts import FakeFacts

PLAIN = Environment(image="python:3.12")
BUILT = Environment(image="python:3.12", dockerfile="RUN pip install pandas")


class StillClock:
    def now(self) -> float:
        return 1_700_000_000.0

    def monotonic(self) -> float:
        return 100.0


@dataclass
class Asker:
    """A run that asks for an image, and writes down what it is told."""

    provider: ImageProvider
    run_id: str = "r-1"
    phases: list[ImagePhase] = field(default_factory=list)
    output: bytes = b""
    progress: list[Progress] = field(default_factory=list)

    async def ask(self, environment: Environment) -> Provided:
        return await self.provider.provide(
            self.run_id,
            environment,
            on_phase=self._on_phase,
            on_output=self._on_output,
            on_progress=self.progress.append,
        )

    async def _on_phase(self, phase: ImagePhase) -> None:
        self.phases.append(phase)

    async def _on_output(self, data: bytes) -> None:
        self.output += data


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    await engine.close()


@pytest.fixture
def facts() -> FakeFacts:
    return FakeFacts()


@pytest.fixture
async def provider(engine: FakeEngine, facts: FakeFacts) -> AsyncIterator[ImageProvider]:
    provider = ImageProvider(engine=engine, facts=facts, clock=StillClock())
    yield provider
    await provider.close()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# -- which way ---------------------------------------------------------------------------------


async def test_an_image_that_is_here_is_taken_as_it_is(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    here = engine.images.add("python:3.12", size_bytes=777)
    asker = Asker(provider)
    provided = await asker.ask(PLAIN)
    assert (provided.image.id, provided.image.reference) == (here.id, "python:3.12")
    assert asker.phases == []
    (cost,) = provided.costs
    assert (cost.stage, cost.way) == (Stage.IMAGE, "local")
    assert (cost.bytes_from_cache, cost.bytes_fetched) == (777, 0)
    assert not engine.images.pulls


async def test_an_image_that_is_missing_is_pulled(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.registry["python:3.12"] = RemoteImage(layers=(100, 400))
    asker = Asker(provider)
    provided = await asker.ask(PLAIN)
    assert asker.phases == [ImagePhase.PULLING]
    (cost,) = provided.costs
    assert (cost.stage, cost.way, cost.bytes_fetched) == (Stage.PULL, "pulled", 500)
    assert asker.progress[-1].bytes_done == 500


async def test_a_dockerfile_is_built_on_top_of_the_image_by_its_id(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    base = engine.images.add("python:3.12")
    asker = Asker(provider)
    provided = await asker.ask(BUILT)
    assert asker.phases == [ImagePhase.BUILDING]
    (cost,) = provided.costs
    assert (cost.stage, cost.way) == (Stage.BUILD, "built")
    spec = engine.images.built[f"executord/env:{provided.image.key}"]
    assert spec.dockerfile.splitlines() == [f"FROM {base.id}", "RUN pip install pandas"]
    assert provided.image.id != base.id
    assert provided.image.reference == "python:3.12"
    assert b"RUN pip install pandas" in asker.output
    assert b"python:3.12" in asker.output
    assert asker.progress[-1].step == asker.progress[-1].steps == 2


async def test_an_environment_that_was_built_before_is_not_built_again(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    first = await Asker(provider).ask(BUILT)
    second = Asker(provider, run_id="r-2")
    provided = await second.ask(BUILT)
    assert provided.image == first.image
    assert second.phases == []
    assert provided.costs[0].way == "local"
    assert sum(engine.images.builds.values()) == 1


async def test_a_base_that_has_moved_gives_another_environment(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12", image_id="sha256:" + "1" * 64)
    first = await Asker(provider).ask(BUILT)
    engine.images.add("python:3.12", image_id="sha256:" + "2" * 64)
    second = await Asker(provider).ask(BUILT)
    assert first.image.key != second.image.key
    assert sum(engine.images.builds.values()) == 2


async def test_the_pull_of_a_missing_base_belongs_to_building(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.registry["python:3.12"] = RemoteImage(layers=(100, 400))
    asker = Asker(provider)
    provided = await asker.ask(BUILT)
    assert set(asker.phases) == {ImagePhase.BUILDING}
    (cost,) = provided.costs
    assert (cost.stage, cost.way, cost.bytes_fetched) == (Stage.BUILD, "built", 500)


async def test_instructions_of_comments_alone_need_no_build(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    base = engine.images.add("python:3.12")
    provided = await Asker(provider).ask(
        Environment(image="python:3.12", dockerfile="# nothing\n\n")
    )
    assert provided.image.id == base.id
    assert not engine.images.builds


# -- policy ------------------------------------------------------------------------------------


async def test_pull_always_asks_the_registry_although_it_is_here(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12", image_id="sha256:" + "1" * 64)
    engine.images.registry["python:3.12"] = RemoteImage(id="sha256:" + "2" * 64)
    asker = Asker(provider)
    provided = await asker.ask(Environment(image="python:3.12", pull=PullPolicy.ALWAYS))
    assert provided.image.id == "sha256:" + "2" * 64
    assert asker.phases == [ImagePhase.PULLING]


async def test_pull_never_with_nothing_here_is_not_found(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.registry["python:3.12"] = RemoteImage()
    for dockerfile in ("", "RUN true"):
        asker = Asker(provider)
        wish = Environment(image="python:3.12", dockerfile=dockerfile, pull=PullPolicy.NEVER)
        with pytest.raises(FaultError) as caught:
            await asker.ask(wish)
        assert caught.value.fault.reason is Reason.IMAGE_NOT_FOUND
        assert "pull: never" in caught.value.fault.detail
        assert asker.phases == []
    assert not engine.images.pulls


async def test_an_id_that_is_not_here_is_not_asked_of_any_registry(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    with pytest.raises(FaultError) as caught:
        await Asker(provider).ask(Environment(image="sha256:" + "d" * 64))
    assert caught.value.fault.reason is Reason.IMAGE_NOT_FOUND
    assert not engine.images.pulls


@pytest.mark.parametrize("dockerfile", ["", "RUN true"])
async def test_an_image_that_exists_nowhere_is_not_found(
    provider: ImageProvider, dockerfile: str
) -> None:
    with pytest.raises(FaultError) as caught:
        await Asker(provider).ask(Environment(image="nowhere:1", dockerfile=dockerfile))
    assert caught.value.fault.reason is Reason.IMAGE_NOT_FOUND


async def test_a_dockerfile_that_begins_with_from_is_refused_before_any_work(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    asker = Asker(provider)
    with pytest.raises(FaultError) as caught:
        await asker.ask(Environment(image="python:3.12", dockerfile="FROM debian\nRUN true"))
    assert caught.value.fault.reason is Reason.BUILD_FAILED
    assert asker.phases == []
    assert not engine.calls


# -- registry ----------------------------------------------------------------------------------


@pytest.fixture
async def shared(engine: FakeEngine, facts: FakeFacts) -> AsyncIterator[ImageProvider]:
    provider = ImageProvider(
        engine=engine, facts=facts, clock=StillClock(), registry="registry:5000"
    )
    yield provider
    await provider.close()


async def test_an_environment_in_the_registry_is_pulled_and_not_built(
    engine: FakeEngine, shared: ImageProvider, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    key = (await Asker(provider).ask(BUILT)).image.key
    engine.images.remove(f"executord/env:{key}")
    engine.images.registry[f"registry:5000/env:{key}"] = RemoteImage(layers=(5, 10))
    asker = Asker(shared)
    provided = await asker.ask(BUILT)
    assert asker.phases == [ImagePhase.PULLING]
    assert provided.image.key == key
    assert (provided.costs[0].stage, provided.costs[0].bytes_fetched) == (Stage.PULL, 15)
    assert sum(engine.images.builds.values()) == 1
    again = Asker(shared, run_id="r-2")
    await again.ask(BUILT)
    assert again.phases == []


async def test_an_environment_that_is_not_in_the_registry_is_built_and_never_shown_as_pulling(
    engine: FakeEngine, shared: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    asker = Asker(shared)
    provided = await asker.ask(BUILT)
    assert asker.phases == [ImagePhase.BUILDING]
    assert provided.costs[0].way == "built"


async def test_a_registry_that_is_away_costs_a_build_and_no_run(
    engine: FakeEngine, shared: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    engine.images.registry_is_down = True
    provided = await Asker(shared).ask(BUILT)
    assert provided.costs[0].way == "built"


# -- sharing -----------------------------------------------------------------------------------


async def test_runs_that_want_the_same_image_share_one_pull(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    gate = asyncio.Event()
    engine.images.registry["python:3.12"] = RemoteImage(layers=(100, 400), gate=gate)
    askers = [Asker(provider, run_id=f"r-{number}") for number in range(8)]
    asking = [asyncio.create_task(asker.ask(PLAIN)) for asker in askers]
    await _until(lambda: all(asker.progress for asker in askers))
    gate.set()
    provided = await asyncio.gather(*asking)
    assert engine.images.pulls["python:3.12"] == 1
    assert len({one.image.id for one in provided}) == 1
    assert sum(one.costs[0].bytes_fetched for one in provided) == 500
    assert all(asker.phases == [ImagePhase.PULLING] for asker in askers)


async def test_a_late_waiter_sees_the_phase_and_all_of_the_builds_output(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    engine.images.build_gate = asyncio.Event()
    early, late = Asker(provider), Asker(provider, run_id="r-2")
    first = asyncio.create_task(early.ask(BUILT))
    await _until(lambda: bool(early.output))
    second = asyncio.create_task(late.ask(BUILT))
    await _until(lambda: bool(late.output))
    assert late.phases == [ImagePhase.BUILDING]
    engine.images.build_gate.set()
    await asyncio.gather(first, second)
    assert late.output == early.output
    assert sum(engine.images.builds.values()) == 1


async def test_a_cancelled_waiter_leaves_the_work_to_the_others(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    engine.images.build_gate = asyncio.Event()
    first, second = (asyncio.create_task(Asker(provider, n).ask(BUILT)) for n in ("r-1", "r-2"))
    await _until(lambda: engine.images.builds_in_flight == 1)
    first.cancel()
    await asyncio.wait([first])
    assert engine.images.builds_in_flight == 1
    engine.images.build_gate.set()
    assert (await second).image.id
    assert sum(engine.images.builds.values()) == 1


async def test_the_last_waiter_who_is_cancelled_ends_the_work(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    engine.images.build_gate = asyncio.Event()
    asking = [asyncio.create_task(Asker(provider, n).ask(BUILT)) for n in ("r-1", "r-2")]
    await _until(lambda: engine.images.builds_in_flight == 1)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    await _until(lambda: engine.images.builds_in_flight == 0)


async def test_who_asks_after_the_last_one_was_cancelled_gets_a_build_of_his_own(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    engine.images.build_gate = asyncio.Event()
    cancelled = asyncio.create_task(Asker(provider).ask(BUILT))
    await _until(lambda: engine.images.builds_in_flight == 1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    again = asyncio.create_task(Asker(provider, "r-2").ask(BUILT))
    await _until(lambda: sum(engine.images.builds.values()) == 2)
    assert engine.images.builds_in_flight == 1
    engine.images.build_gate.set()
    assert (await again).costs[0].way == "built"


async def test_a_fault_reaches_every_waiter_and_the_next_run_tries_again(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    engine.images.build_gate = asyncio.Event()
    broken = Environment(image="python:3.12", dockerfile="RUN exit 7")
    asking = [asyncio.create_task(Asker(provider, n).ask(broken)) for n in ("r-1", "r-2")]
    await _until(lambda: engine.images.builds_in_flight == 1)
    engine.images.build_gate.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    faults = [outcome.fault for outcome in outcomes if isinstance(outcome, FaultError)]
    assert [fault.reason for fault in faults] == [Reason.BUILD_FAILED] * 2
    with pytest.raises(FaultError):
        await Asker(provider, "r-3").ask(broken)
    assert sum(engine.images.builds.values()) == 2


async def test_an_engine_that_fails_is_not_the_dockerfiles_fault(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    engine.fail_next("build_image", Fault(Reason.ENGINE_UNAVAILABLE, "gone"))
    with pytest.raises(FaultError) as caught:
        await Asker(provider).ask(BUILT)
    assert caught.value.fault.reason is Reason.ENGINE_UNAVAILABLE


async def test_closing_ends_what_is_under_way(engine: FakeEngine, provider: ImageProvider) -> None:
    engine.images.add("python:3.12")
    engine.images.build_gate = asyncio.Event()
    asking = asyncio.create_task(Asker(provider).ask(BUILT))
    await _until(lambda: engine.images.builds_in_flight == 1)
    await provider.close()
    assert engine.images.builds_in_flight == 0
    await asyncio.wait([asking], timeout=1)
    assert asking.cancelled()


# -- the ledger --------------------------------------------------------------------------------


async def test_entries_tell_who_uses_what_and_what_it_cost(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12", size_bytes=500)
    engine.images.add("other:1")
    await Asker(provider, "r-1").ask(PLAIN)
    built = await Asker(provider, "r-2").ask(BUILT)
    entries = {entry.key: entry for entry in await provider.entries()}
    assert len(entries) == 2
    entry = entries[built.image.key]
    assert (entry.made_by, entry.used_by, entry.reference) == ("built", ("r-2",), "python:3.12")
    assert entry.last_used == StillClock().now()
    await provider.release("r-2")
    entries = {entry.key: entry for entry in await provider.entries()}
    assert entries[built.image.key].used_by == ()


async def test_pins_outlive_the_daemon_and_those_of_ended_runs_are_let_go(
    engine: FakeEngine, facts: FakeFacts, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    for run_id in ("r-1", "r-2"):
        await Asker(provider, run_id).ask(PLAIN)
    reborn = ImageProvider(engine=engine, facts=facts, clock=StillClock())
    assert (await reborn.entries())[0].used_by == ("r-1", "r-2")
    await reborn.open({"r-2"})
    assert (await reborn.entries())[0].used_by == ("r-2",)


async def test_many_runs_at_once_all_pin_their_image(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    runs = [f"r-{number}" for number in range(20)]
    await asyncio.gather(*(Asker(provider, run_id).ask(PLAIN) for run_id in runs))
    assert set((await provider.entries())[0].used_by) == set(runs)


async def test_an_image_that_somebody_removed_is_no_entry_any_more(
    engine: FakeEngine, facts: FakeFacts, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    await Asker(provider).ask(PLAIN)
    await provider.release("r-1")
    engine.images.remove("python:3.12")
    assert await provider.entries() == []
    assert not facts.kept


async def test_a_record_that_makes_no_sense_costs_nothing_but_itself(
    engine: FakeEngine, facts: FakeFacts, provider: ImageProvider
) -> None:
    engine.images.add("python:3.12")
    await facts.put_fact("image", "k", {"used_by": 3})
    await Asker(provider).ask(PLAIN)
    assert len(await provider.entries()) == 1
    assert ("image", "k") not in facts.kept


async def test_what_an_image_shares_with_its_base_is_not_its_own(
    engine: FakeEngine, provider: ImageProvider
) -> None:
    base = engine.images.add("python:3.12", size_bytes=500)
    built = await Asker(provider).ask(BUILT)
    engine.images.stack(built.image.id, on=base.id, size_bytes=620)
    await Asker(provider, "r-2").ask(PLAIN)
    own = {entry.image_id: entry.own_bytes for entry in await provider.entries()}
    assert own == {built.image.id: 120, base.id: 0}

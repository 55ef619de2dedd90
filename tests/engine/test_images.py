"""Environments on a real engine, with a registry on loopback: found, pulled, built, shared."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from executord.core.reasons import FaultError, Reason, Side
from executord.core.run import Environment, ImagePhase, PullPolicy, Stage
from executord.images.provider import ImageProvider
from executord.ports import Progress, Provided
from tests.fakes.engine_bench import MEBIBYTE, RealBench, real_bench
from tests.fakes.facts import FakeFacts


class RealClock:
    def now(self) -> float:
        return 1_700_000_000.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass
class Asker:
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
async def bench() -> AsyncIterator[RealBench]:
    async with real_bench() as bench:
        yield bench


@pytest.fixture
async def provider(bench: RealBench) -> AsyncIterator[ImageProvider]:
    provider = ImageProvider(engine=bench.engine, facts=FakeFacts(), clock=RealClock())
    yield provider
    await provider.close()


def _environment(bench: RealBench, *instructions: str) -> Environment:
    """Built on busybox; its label lets the bench find all that is left of it."""
    label = f"LABEL executord.test={bench.mark}"
    return Environment(image=bench.image, dockerfile="\n".join([label, *instructions]))


async def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_dockerfile_is_built_once_and_found_the_next_time(
    bench: RealBench, provider: ImageProvider
) -> None:
    wish = _environment(
        bench, "ENV MADE=here", 'RUN echo "made by $MADE" > /made.txt; cat /made.txt'
    )
    first, second = Asker(provider), Asker(provider, "r-2")
    built = await first.ask(wish)
    assert first.phases == [ImagePhase.BUILDING]
    assert (built.costs[0].stage, built.costs[0].way) == (Stage.BUILD, "built")
    assert b"\nmade by here\n" in first.output
    assert f"Base image {bench.image} is sha256:".encode() in first.output
    assert first.progress[-1].what == "build"
    assert 0 < first.progress[-1].step <= first.progress[-1].steps
    assert any("RUN echo" in progress.detail for progress in first.progress)
    again = await second.ask(wish)
    assert again.image == built.image
    assert second.phases == []
    assert again.costs[0].way == "local"
    assert again.costs[0].seconds < 0.1


async def test_a_built_image_holds_what_was_built(
    bench: RealBench, provider: ImageProvider
) -> None:
    built = await Asker(provider).ask(_environment(bench, "RUN echo 5 > /code"))
    name = bench.name("in-built")
    spec = bench.spec(
        "nothing", image=built.image.id, name=name, command=("sh", "-c", "exit $(cat /code)")
    )
    container = await bench.engine.create_container(spec)
    async with bench.engine.watch_exit(container) as ended:
        await bench.engine.start_container(container)
        await ended()
    facts = await bench.engine.inspect_container(container)
    assert facts is not None
    assert facts.exit_code == 5


async def test_build_arguments_reach_the_build_and_change_the_key(
    bench: RealBench, provider: ImageProvider
) -> None:
    plain = _environment(bench, "ARG WORD=none", 'RUN echo "word is $WORD"')
    one, other = Asker(provider), Asker(provider)
    first = await one.ask(plain)
    second = await other.ask(
        Environment(image=plain.image, dockerfile=plain.dockerfile, build_args={"WORD": "x y"})
    )
    assert b"word is none" in one.output
    assert b"word is x y" in other.output
    assert first.image.key != second.image.key


async def test_a_dockerfile_that_fails_is_the_users_side_with_its_last_lines(
    bench: RealBench, provider: ImageProvider
) -> None:
    asker = Asker(provider)
    with pytest.raises(FaultError) as caught:
        await asker.ask(_environment(bench, "RUN echo looking for pandas; exit 9"))
    fault = caught.value.fault
    assert (fault.reason, fault.side) == (Reason.BUILD_FAILED, Side.USER)
    assert "looking for pandas" in fault.detail
    assert "exit 9" in fault.detail
    assert fault.evidence["exit_code"] == 9
    assert b"looking for pandas" in asker.output


async def test_a_dockerfile_that_cannot_be_parsed_names_the_users_own_line(
    bench: RealBench, provider: ImageProvider
) -> None:
    with pytest.raises(FaultError) as caught:
        await Asker(provider).ask(_environment(bench, "RUN true", "INSTALL pandas"))
    fault = caught.value.fault
    assert fault.reason is Reason.BUILD_FAILED
    assert "line 3" in fault.detail
    assert "INSTALL" in fault.detail


async def test_eight_runs_that_want_one_environment_cause_one_build(
    bench: RealBench, provider: ImageProvider
) -> None:
    wish = _environment(bench, "RUN sleep 0.5; echo done-$RANDOM")
    askers = [Asker(provider, f"r-{number}") for number in range(8)]
    provided = await asyncio.gather(*(asker.ask(wish) for asker in askers))
    assert len({one.image.id for one in provided}) == 1
    assert len({asker.output for asker in askers}) == 1
    assert askers[0].output.count(b"Successfully tagged") == 1


async def test_the_last_cancelled_waiter_ends_the_build_and_its_container(
    bench: RealBench, provider: ImageProvider
) -> None:
    asker = Asker(provider)
    asking = asyncio.create_task(asker.ask(_environment(bench, "RUN echo begun; sleep 600")))
    await _until(lambda: b"\nbegun\n" in asker.output)
    assert len(await bench.engine.list_containers(bench.labels)) == 1
    asking.cancel()
    await asyncio.wait([asking])
    async with asyncio.timeout(15):
        while await bench.engine.list_containers(bench.labels):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_eight_runs_that_want_one_image_cause_one_pull(
    bench: RealBench, provider: ImageProvider
) -> None:
    reference = bench.publish("shared", size_bytes=4 * MEBIBYTE)
    bench.registry.gate = asyncio.Event()
    askers = [Asker(provider, f"r-{number}") for number in range(8)]
    asking = [asyncio.create_task(a.ask(Environment(image=reference))) for a in askers]
    await _until(lambda: all(asker.progress for asker in askers))
    bench.registry.gate.set()
    provided = await asyncio.gather(*asking)
    assert len({one.image.id for one in provided}) == 1
    assert all(asker.phases == [ImagePhase.PULLING] for asker in askers)
    assert all(asker.progress[-1].bytes_done >= 4 * MEBIBYTE for asker in askers)
    fetched = sum(one.costs[0].bytes_fetched for one in provided)
    assert 4 * MEBIBYTE <= fetched < 5 * MEBIBYTE
    assert provided[0].costs[0].stage is Stage.PULL


async def test_a_cancelled_pull_is_given_up_by_the_engine(
    bench: RealBench, provider: ImageProvider
) -> None:
    reference = bench.publish("slow", size_bytes=4 * MEBIBYTE)
    bench.registry.gate = asyncio.Event()
    asker = Asker(provider)
    asking = asyncio.create_task(asker.ask(Environment(image=reference)))
    await _until(lambda: any(progress.bytes_done for progress in asker.progress))
    asking.cancel()
    await asyncio.wait([asking])
    await asyncio.sleep(0.5)
    bench.registry.gate.set()
    await asyncio.sleep(1.5)  # several times what the rest of the pull would take
    assert await bench.engine.inspect_image(reference) is None


async def test_a_base_that_is_missing_is_pulled_while_building(
    bench: RealBench, provider: ImageProvider
) -> None:
    reference = bench.publish("base", size_bytes=100_000)
    wish = Environment(image=reference, dockerfile=f"LABEL executord.test={bench.mark}")
    asker = Asker(provider)
    provided = await asker.ask(wish)
    assert set(asker.phases) == {ImagePhase.BUILDING}
    assert provided.costs[0].stage is Stage.BUILD
    assert provided.costs[0].bytes_fetched >= 100_000


@pytest.mark.parametrize("dockerfile", ["", "RUN true"])
async def test_an_image_that_does_not_exist_is_not_found(
    bench: RealBench, provider: ImageProvider, dockerfile: str
) -> None:
    with pytest.raises(FaultError) as caught:
        await Asker(provider).ask(Environment(image=bench.unknown(), dockerfile=dockerfile))
    assert caught.value.fault.reason is Reason.IMAGE_NOT_FOUND


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_registry_in_trouble_is_not_the_users_fault(
    bench: RealBench, provider: ImageProvider, status: int
) -> None:
    bench.registry.status = status
    with pytest.raises(FaultError) as caught:
        await Asker(provider).ask(Environment(image=bench.unknown()))
    assert caught.value.fault.reason is Reason.REGISTRY_UNAVAILABLE


async def test_a_layer_that_is_not_what_its_digest_says_is_not_taken(
    bench: RealBench, provider: ImageProvider
) -> None:
    reference = bench.publish("forged", size_bytes=50_000)
    for digest, blob in bench.registry.blobs.items():
        if len(blob) > 10_000:
            bench.registry.blobs[digest] = blob[:-100] + b"\0" * 100
    with pytest.raises(FaultError) as caught:
        await Asker(provider).ask(Environment(image=reference))
    assert caught.value.fault.reason is Reason.REGISTRY_UNAVAILABLE
    assert await bench.engine.inspect_image(reference) is None


async def test_pull_always_sees_that_a_tag_has_moved(
    bench: RealBench, provider: ImageProvider
) -> None:
    reference = bench.publish("moving", size_bytes=1000)
    always = Environment(image=reference, pull=PullPolicy.ALWAYS)
    before = await Asker(provider).ask(always)
    bench.publish("moving", size_bytes=1001)
    missing = await Asker(provider).ask(Environment(image=reference))
    after = await Asker(provider).ask(always)
    assert missing.image.id == before.image.id
    assert after.image.id != before.image.id


async def test_an_environment_in_the_registry_is_fetched_and_not_built(
    bench: RealBench, provider: ImageProvider
) -> None:
    wish = _environment(bench, "RUN echo once > /once")
    key = (await Asker(provider).ask(wish)).image.key
    await bench.engine.remove_image(f"executord/env:{key}")
    bench.registry.publish(f"{bench.mark}/env", key, layer_bytes=(20_000,))
    second = ImageProvider(
        engine=bench.engine,
        facts=FakeFacts(),
        clock=RealClock(),
        registry=f"127.0.0.1:{bench.registry.port}/{bench.mark}",
    )
    asker = Asker(second)
    try:
        provided = await asker.ask(wish)
    finally:
        await second.close()
        await bench.engine.remove_image(f"executord/env:{key}")
    assert asker.phases == [ImagePhase.PULLING]
    assert provided.image.key == key
    assert provided.costs[0].way == "pulled"
    assert asker.output == b""


async def test_entries_show_what_a_run_uses_and_what_only_it_holds(
    bench: RealBench, provider: ImageProvider
) -> None:
    built = await Asker(provider).ask(
        _environment(bench, "RUN dd if=/dev/zero of=/big bs=1024 count=2048")
    )
    (entry,) = await provider.entries()
    assert (entry.key, entry.used_by, entry.made_by) == (built.image.key, ("r-1",), "built")
    assert entry.own_bytes == pytest.approx(2048 * 1024, rel=0.02)
    assert entry.size_bytes > entry.own_bytes
    assert entry.made_seconds > 0

"""What every container engine promises: the fake and the real one are held to the same."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason, Side
from executord.ports import BuildSpec, VolumeMount
from tests.fakes.engine_bench import MEBIBYTE, Bench, fake_bench, real_bench


@pytest.fixture(params=["fake", "real"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        async with fake_bench(tmp_path) as fake:
            yield fake
    else:
        async with real_bench() as real:
            yield real


# -- containers: from creation to removal ------------------------------------------------------


async def test_it_tells_what_it_is(bench: Bench) -> None:
    facts = await bench.engine.facts()
    assert facts.version
    assert facts.api_version
    assert facts.storage_driver
    assert facts.cgroup_version in (1, 2)
    assert facts.data_root.startswith("/")


async def test_a_created_container_has_not_run(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("nothing"))
    facts = await bench.engine.inspect_container(container)
    assert facts is not None
    assert facts.id == container
    assert facts.name == bench.name()
    assert facts.state == "created"
    assert facts.exit_code is None
    assert facts.started_at is None
    assert facts.finished_at is None
    assert facts.labels.items() >= bench.labels.items()


async def test_a_container_can_be_found_by_its_name(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("nothing"))
    facts = await bench.engine.inspect_container(bench.name())
    assert facts is not None
    assert facts.id == container


async def test_a_running_container_has_a_process_and_no_exit_code(bench: Bench) -> None:
    before = time.time()
    container = await bench.engine.create_container(bench.spec("sleeps"))
    await bench.engine.start_container(container)
    facts = await bench.engine.inspect_container(container)
    assert facts is not None
    assert facts.state == "running"
    assert facts.pid > 0
    assert facts.exit_code is None
    assert facts.started_at is not None
    assert before - 1 < facts.started_at < time.time() + 1


async def test_an_exit_code_is_told(bench: Bench) -> None:
    facts = await bench.run("fails with 3")
    assert (facts.state, facts.exit_code, facts.oom_killed) == ("exited", 3, False)
    assert facts.started_at is not None
    assert facts.finished_at is not None
    # The engine stamps the start after it, so a quick end may seem to lie a little before it.
    assert facts.finished_at >= facts.started_at - 1
    assert facts.pid == 0


async def test_output_is_in_the_log_file_with_its_stream(bench: Bench) -> None:
    facts = await bench.run("greets")
    text = await asyncio.to_thread(Path(facts.log_path).read_text)
    records = [json.loads(line) for line in text.splitlines()]
    said = {record["stream"]: record["log"] for record in records}
    assert said == {"stdout": "hello\n", "stderr": "oops\n"}


async def test_a_command_that_is_missing_never_ran(bench: Bench) -> None:
    facts = await bench.run("is not there")
    assert (facts.state, facts.exit_code, facts.started_at) == ("exited", 127, None)
    assert "no-such-program" in facts.error
    assert "No such file" in facts.error


async def test_a_command_that_cannot_be_executed_never_ran(bench: Bench) -> None:
    facts = await bench.run("cannot be executed")
    assert (facts.state, facts.exit_code, facts.started_at) == ("exited", 126, None)
    assert "Permission denied" in facts.error


async def test_reaching_the_memory_limit_shows(bench: Bench) -> None:
    facts = await bench.run("eats memory", memory_bytes=16 * MEBIBYTE)
    assert facts.exit_code == 137
    assert facts.oom_killed


# -- containers: everything may be repeated ----------------------------------------------------


async def test_creating_twice_gives_the_same_container(bench: Bench) -> None:
    first = await bench.engine.create_container(bench.spec("nothing"))
    assert await bench.engine.create_container(bench.spec("nothing")) == first


async def test_a_container_of_the_same_name_that_is_not_ours_is_refused(bench: Bench) -> None:
    await bench.engine.create_container(bench.spec("nothing"))
    other = bench.spec("nothing", labels={**bench.labels, "executord.spec": "another"})
    with pytest.raises(FaultError) as caught:
        await bench.engine.create_container(other)
    assert caught.value.fault.reason is Reason.ENGINE_REFUSED
    assert bench.name() in caught.value.fault.detail


async def test_creating_without_the_image_is_the_users_matter(bench: Bench) -> None:
    with pytest.raises(FaultError) as caught:
        await bench.engine.create_container(bench.spec("nothing", image="executord-test/no:1"))
    assert caught.value.fault.reason is Reason.IMAGE_NOT_FOUND


async def test_creating_without_the_volume_makes_no_empty_one(bench: Bench) -> None:
    volume = bench.name("gone")
    with pytest.raises(FaultError) as caught:
        await bench.engine.create_container(bench.spec("nothing", volume=volume))
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED
    assert await bench.engine.inspect_container(bench.name()) is None


async def test_starting_twice_starts_once(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("sleeps"))
    await bench.engine.start_container(container)
    first = await bench.engine.inspect_container(container)
    await bench.engine.start_container(container)
    assert await bench.engine.inspect_container(container) == first


async def test_starting_a_container_that_has_ended_does_not_run_it_again(bench: Bench) -> None:
    ended = await bench.run("greets")
    await bench.engine.start_container(ended.id)
    await asyncio.sleep(0.1)
    assert await bench.engine.inspect_container(ended.id) == ended


async def test_starting_a_container_that_is_gone_is_a_lost_container(bench: Bench) -> None:
    with pytest.raises(FaultError) as caught:
        await bench.engine.start_container(bench.name("gone"))
    assert caught.value.fault.reason is Reason.CONTAINER_LOST


async def test_removing_ends_what_runs_and_may_be_repeated(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("ignores SIGTERM"))
    await bench.engine.start_container(container)
    await bench.engine.remove_container(container)
    assert await bench.engine.inspect_container(container) is None
    await bench.engine.remove_container(container)


async def test_two_removals_at_once_both_succeed(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("sleeps"))
    await bench.engine.start_container(container)
    await asyncio.gather(*(bench.engine.remove_container(container) for _ in range(3)))
    assert await bench.engine.inspect_container(container) is None


async def test_containers_are_listed_by_all_their_labels(bench: Bench) -> None:
    ours = bench.spec("nothing", labels={**bench.labels, "executord.run": "r-1"})
    container = await bench.engine.create_container(ours)
    await bench.engine.create_container(bench.spec("nothing", name=bench.name("other")))
    found = await bench.engine.list_containers({**bench.labels, "executord.run": "r-1"})
    assert [(facts.id, facts.state) for facts in found] == [(container, "created")]
    assert len(await bench.engine.list_containers(bench.labels)) == 2


# -- containers: signals and the watch ---------------------------------------------------------


async def test_sigterm_ends_a_program_that_does_not_mind(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("sleeps"))
    async with bench.engine.watch_exit(container) as ended:
        await bench.engine.start_container(container)
        await bench.engine.signal_container(container, "SIGTERM")
        async with asyncio.timeout(10):
            await ended()
    facts = await bench.engine.inspect_container(container)
    assert facts is not None
    assert facts.exit_code == 143


async def test_only_sigkill_ends_a_program_that_ignores_sigterm(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("ignores SIGTERM"))
    async with bench.engine.watch_exit(container) as ended:
        await bench.engine.start_container(container)
        await asyncio.sleep(0.3)
        await bench.engine.signal_container(container, "SIGTERM")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ended(), 0.5)
        await bench.engine.signal_container(container, "SIGKILL")
    facts = await _once_ended(bench, container)
    assert facts == 137


async def test_a_paused_container_stands_still_until_it_is_resumed(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("sleeps"))
    await bench.engine.start_container(container)
    before = await bench.engine.inspect_container(container)
    assert await bench.engine.pause_container(container)
    assert await bench.engine.pause_container(container)
    facts = await bench.engine.inspect_container(container)
    assert facts is not None
    assert facts.state == "paused"
    await bench.engine.unpause_container(container)
    await bench.engine.unpause_container(container)
    assert await bench.engine.inspect_container(container) == before


async def test_what_does_not_run_cannot_be_paused(bench: Bench) -> None:
    assert not await bench.engine.pause_container(bench.name("gone"))
    await bench.engine.unpause_container(bench.name("gone"))
    ended = await bench.run("nothing")
    assert not await bench.engine.pause_container(ended.id)
    await bench.engine.unpause_container(ended.id)
    assert await bench.engine.inspect_container(ended.id) == ended


async def test_a_paused_container_can_be_ended(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("sleeps"))
    async with bench.engine.watch_exit(container) as ended:
        await bench.engine.start_container(container)
        assert await bench.engine.pause_container(container)
        await bench.engine.signal_container(container, "SIGTERM")
        async with asyncio.timeout(10):
            await ended()
    assert await _once_ended(bench, container) == 143


async def _once_ended(bench: Bench, container: str) -> int | None:
    async with bench.engine.watch_exit(container) as ended, asyncio.timeout(10):
        await ended()
    facts = await bench.engine.inspect_container(container)
    assert facts is not None
    assert facts.state == "exited"
    return facts.exit_code


async def test_signals_to_what_does_not_run_do_nothing(bench: Bench) -> None:
    ended = await bench.run("nothing")
    await bench.engine.signal_container(ended.id, "SIGTERM")
    assert await bench.engine.inspect_container(ended.id) == ended
    await bench.engine.signal_container(bench.name("gone"), "SIGKILL")


async def test_a_watch_from_before_the_start_misses_no_exit(bench: Bench) -> None:
    for number in range(4):
        facts = await bench.run("nothing", name=bench.name(f"short-{number}"))
        assert (facts.state, facts.exit_code) == ("exited", 0)


async def test_a_watch_from_after_the_exit_returns_at_once(bench: Bench) -> None:
    facts = await bench.run("nothing")
    async with bench.engine.watch_exit(facts.id) as ended, asyncio.timeout(5):
        await ended()


async def test_a_watch_of_nothing_returns_at_once(bench: Bench) -> None:
    async with bench.engine.watch_exit(bench.name("gone")) as ended, asyncio.timeout(5):
        await ended()


async def test_a_watch_ends_when_a_stranger_removes_the_container(bench: Bench) -> None:
    container = await bench.engine.create_container(bench.spec("sleeps"))
    async with bench.engine.watch_exit(container) as ended:
        await bench.engine.start_container(container)
        removing = asyncio.create_task(bench.engine.remove_container(container))
        async with asyncio.timeout(10):
            await ended()
        await removing
    assert await bench.engine.inspect_container(container) is None


# -- volumes -----------------------------------------------------------------------------------


def _directories(root: Path) -> tuple[Path, Path, Path]:
    made = (root / "lower", root / "upper", root / "work")
    for path in made:
        path.mkdir()
    (made[0] / "given.txt").write_text("given")
    return made


async def test_what_a_run_writes_lands_in_the_upper_directory(bench: Bench, tmp_path: Path) -> None:
    lower, upper, work = await asyncio.to_thread(_directories, tmp_path)
    volume = bench.name("volume")
    await bench.engine.create_overlay_volume(
        volume, lower=[lower], upper=upper, work=work, labels=bench.labels
    )
    facts = await bench.run("writes made.txt", volume=volume)
    assert facts.exit_code == 0
    assert await asyncio.to_thread((upper / "made.txt").read_text) == "data\n"
    assert not await asyncio.to_thread((lower / "made.txt").exists)


async def test_a_bound_directory_is_what_the_container_writes_to(
    bench: Bench, tmp_path: Path
) -> None:
    directory = tmp_path / "files"
    directory.mkdir()
    directory.chmod(0o777)
    volume = bench.name("volume")
    await bench.engine.create_bind_volume(volume, directory=directory, labels=bench.labels)
    facts = await bench.run("writes made.txt", volume=volume)
    assert facts.exit_code == 0
    assert (directory / "made.txt").exists()
    await bench.engine.remove_container(facts.id)
    await bench.engine.remove_volume(volume)
    assert (directory / "made.txt").exists()


def _layers(root: Path) -> list[Path]:
    """The top one hides a file of the one below it."""
    found = [root / "layer", root / "snapshot"]
    for path in found:
        path.mkdir()
    (found[0] / "both.txt").write_text("top\n")
    (found[1] / "both.txt").write_text("hidden\n")
    (found[1] / "below.txt").write_text("below\n")
    return found


async def test_layers_are_seen_as_one_tree_that_nobody_can_write(
    bench: Bench, tmp_path: Path
) -> None:
    layers = await asyncio.to_thread(_layers, tmp_path)
    volume = bench.name("dataset")
    for _ in range(2):
        await bench.engine.create_read_only_volume(volume, lower=layers, labels=bench.labels)
    assert await bench.engine.list_volumes(bench.labels) == [volume]
    facts = await bench.run(
        "sees the layers at /data, and cannot write there",
        volumes=(VolumeMount(volume=volume, target="/data"),),
    )
    assert facts.exit_code == 0
    assert sorted(path.name for path in layers[0].iterdir()) == ["both.txt"]
    with pytest.raises(FaultError) as caught:
        await bench.engine.remove_volume(volume)
    assert caught.value.fault.reason is Reason.ENGINE_REFUSED
    await bench.engine.remove_container(facts.id)
    await bench.engine.remove_volume(volume)
    assert await bench.engine.list_volumes(bench.labels) == []


async def test_one_layer_alone_is_no_read_only_volume(bench: Bench, tmp_path: Path) -> None:
    layers = await asyncio.to_thread(_layers, tmp_path)
    with pytest.raises(FaultError) as caught:
        await bench.engine.create_read_only_volume(
            bench.name("dataset"), lower=layers[:1], labels=bench.labels
        )
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED
    assert await bench.engine.list_volumes(bench.labels) == []


@pytest.mark.parametrize("kind", ["bind", "read-only"])
async def test_a_bound_or_read_only_volume_made_anew_is_the_new_one_and_never_somebody_elses(
    bench: Bench, tmp_path: Path, kind: str
) -> None:
    layers = await asyncio.to_thread(_layers, tmp_path)
    volume = bench.name("volume")

    async def make(lower: list[Path], labels: dict[str, str]) -> None:
        if kind == "bind":
            await bench.engine.create_bind_volume(volume, directory=lower[0], labels=labels)
        else:
            await bench.engine.create_read_only_volume(volume, lower=lower, labels=labels)

    await make(layers[::-1], bench.labels)
    await make(layers, bench.labels)
    if kind == "bind":
        await bench.run("writes made.txt", volume=volume)
        assert (layers[0] / "made.txt").exists()
    else:
        facts = await bench.run(
            "sees the layers at /data, and cannot write there",
            volumes=(VolumeMount(volume=volume, target="/data"),),
        )
        assert facts.exit_code == 0
    with pytest.raises(FaultError) as caught:
        await make(layers, {"executord.test": "other"})
    assert caught.value.fault.reason is Reason.ENGINE_REFUSED


async def test_volumes_may_be_made_and_removed_twice(bench: Bench, tmp_path: Path) -> None:
    lower, upper, work = await asyncio.to_thread(_directories, tmp_path)
    volume = bench.name("volume")
    for _ in range(2):
        await bench.engine.create_overlay_volume(
            volume, lower=[lower], upper=upper, work=work, labels=bench.labels
        )
        assert await bench.engine.list_volumes(bench.labels) == [volume]
    for _ in range(2):
        await bench.engine.remove_volume(volume)
        assert await bench.engine.list_volumes(bench.labels) == []


async def test_a_volume_made_anew_has_its_new_directories(bench: Bench, tmp_path: Path) -> None:
    lower, upper, work = await asyncio.to_thread(_directories, tmp_path)
    second = tmp_path / "second"
    await asyncio.to_thread(second.mkdir)
    volume = bench.name("volume")
    for chosen in (upper, second):
        await bench.engine.create_overlay_volume(
            volume, lower=[lower], upper=chosen, work=work, labels=bench.labels
        )
    await bench.run("writes made.txt", volume=volume)
    assert await asyncio.to_thread((second / "made.txt").exists)


async def test_a_volume_that_is_somebody_elses_is_refused(bench: Bench, tmp_path: Path) -> None:
    lower, upper, work = await asyncio.to_thread(_directories, tmp_path)
    volume = bench.name("volume")
    await bench.engine.create_overlay_volume(
        volume, lower=[lower], upper=upper, work=work, labels=bench.labels
    )
    with pytest.raises(FaultError) as caught:
        await bench.engine.create_overlay_volume(
            volume, lower=[lower], upper=upper, work=work, labels={"executord.test": "other"}
        )
    assert caught.value.fault.reason is Reason.ENGINE_REFUSED


async def test_a_volume_in_use_stays(bench: Bench, tmp_path: Path) -> None:
    lower, upper, work = await asyncio.to_thread(_directories, tmp_path)
    volume = bench.name("volume")
    await bench.engine.create_overlay_volume(
        volume, lower=[lower], upper=upper, work=work, labels=bench.labels
    )
    await bench.engine.create_container(bench.spec("nothing", volume=volume))
    with pytest.raises(FaultError) as caught:
        await bench.engine.remove_volume(volume)
    assert caught.value.fault.reason is Reason.ENGINE_REFUSED
    assert await bench.engine.list_volumes(bench.labels) == [volume]


# -- images ------------------------------------------------------------------------------------


async def test_an_image_that_is_here_is_found_by_name_and_id(bench: Bench) -> None:
    image = await bench.engine.inspect_image(bench.image)
    assert image is not None
    assert bench.image in image.tags
    assert image.id.startswith("sha256:")
    assert image.size_bytes > 0
    assert image.layers
    assert await bench.engine.inspect_image(image.id) == image
    assert image.id in {listed.id for listed in await bench.engine.list_images()}


async def test_an_image_that_is_not_here_is_none(bench: Bench) -> None:
    assert await bench.engine.inspect_image("executord-test/none:1") is None


@pytest.mark.parametrize("name", ["../containers/x", "a b", "", "x?force=1", "a/./b", "-x"])
async def test_a_hostile_image_name_never_reaches_the_engine(bench: Bench, name: str) -> None:
    with pytest.raises(FaultError) as caught:
        await bench.engine.inspect_image(name)
    assert caught.value.fault.reason is Reason.IMAGE_NOT_FOUND


async def test_a_pull_shows_progress_and_brings_the_image(bench: Bench) -> None:
    reference = bench.publish("whole", size_bytes=3 * MEBIBYTE)
    progress = [p async for p in bench.engine.pull_image(reference)]
    last = progress[-1]
    assert last.what == "pull"
    assert last.bytes_done == last.bytes_total >= 3 * MEBIBYTE
    assert all(a.bytes_done <= b.bytes_done for a, b in itertools.pairwise(progress))
    assert await bench.engine.inspect_image(reference) is not None


async def test_a_pull_of_what_the_registry_does_not_have_is_not_found(bench: Bench) -> None:
    assert await _pull_fault(bench, bench.unknown()) is Reason.IMAGE_NOT_FOUND


async def test_a_pull_that_the_registry_denies_is_denied(bench: Bench) -> None:
    assert await _pull_fault(bench, bench.deny("secret")) is Reason.IMAGE_DENIED


async def test_a_pull_from_a_dead_registry_is_the_platforms_matter(bench: Bench) -> None:
    reason = await _pull_fault(bench, bench.unreachable())
    assert reason is Reason.REGISTRY_UNAVAILABLE


async def _pull_fault(bench: Bench, reference: str) -> Reason:
    with pytest.raises(FaultError) as caught:
        _ = [p async for p in bench.engine.pull_image(reference)]
    assert reference in caught.value.fault.detail or isinstance(caught.value.fault.detail, str)
    assert await bench.engine.inspect_image(reference) is None
    return caught.value.fault.reason


async def test_a_build_shows_its_steps_and_brings_the_image(bench: Bench) -> None:
    tag = f"executord-test/{bench.mark}:built"
    steps = await bench.build(tag, "RUN echo out of the build\n")
    assert max(step.step for step in steps) >= 2
    assert len({step.steps for step in steps if step.steps}) == 1
    assert b"RUN echo out of the build" in b"".join(step.output for step in steps)
    image = await bench.engine.inspect_image(tag)
    assert image is not None
    assert image.labels.items() >= bench.labels.items()


async def test_a_build_that_fails_names_the_step(bench: Bench) -> None:
    tag = f"executord-test/{bench.mark}:broken"
    with pytest.raises(FaultError) as caught:
        await bench.build(tag, "RUN true\nRUN exit 7\n")
    fault = caught.value.fault
    assert fault.reason is Reason.BUILD_FAILED
    assert fault.side is Side.USER
    assert "Step 4/" in fault.detail
    assert "RUN exit 7" in fault.detail
    assert await bench.engine.inspect_image(tag) is None


async def test_a_build_on_a_base_that_does_not_exist_is_not_found(bench: Bench) -> None:
    spec = BuildSpec(tag=f"executord-test/{bench.mark}:no", dockerfile=f"FROM {bench.unknown()}\n")
    with pytest.raises(FaultError) as caught:
        _ = [step async for step in bench.engine.build_image(spec)]
    assert caught.value.fault.reason is Reason.IMAGE_NOT_FOUND


async def test_a_build_on_a_base_from_a_dead_registry_is_the_platforms_matter(
    bench: Bench,
) -> None:
    spec = BuildSpec(
        tag=f"executord-test/{bench.mark}:no", dockerfile=f"FROM {bench.unreachable()}\n"
    )
    with pytest.raises(FaultError) as caught:
        _ = [step async for step in bench.engine.build_image(spec)]
    assert caught.value.fault.reason is Reason.REGISTRY_UNAVAILABLE


async def test_a_build_that_is_closed_early_leaves_neither_image_nor_container(
    bench: Bench,
) -> None:
    tag = f"executord-test/{bench.mark}:closed"
    label = f"LABEL executord.test={bench.mark}"
    spec = BuildSpec(tag=tag, dockerfile=f"FROM {bench.image}\n{label}\nRUN sleep 600\n")
    async with aclosing(bench.engine.build_image(spec)) as steps:
        async for step in steps:
            if step.step == 3:
                break
    async with asyncio.timeout(15):
        while await bench.engine.list_containers(bench.labels):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await bench.engine.inspect_image(tag) is None


async def test_an_image_can_be_named_again_and_its_name_removed(bench: Bench) -> None:
    name = f"executord-test/{bench.mark}:second"
    await bench.engine.tag_image(bench.image, name)
    image = await bench.engine.inspect_image(name)
    assert image is not None
    assert {name, bench.image} <= set(image.tags)
    for _ in range(2):
        await bench.engine.remove_image(name)
    assert await bench.engine.inspect_image(name) is None
    assert await bench.engine.inspect_image(bench.image) is not None

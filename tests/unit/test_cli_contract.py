"""The client on the daemon's own API server, and the fake daemon held against the same types."""

import asyncio
import json
import subprocess
from pathlib import Path

import msgspec
import pytest

from executord.api import answers
from executord.core.cloudevents import CloudEvent
from executord.core.states import State
from tests.fakes.api import Api, serving
from tests.fakes.daemon import FakeDaemon
from tests.fakes.daemon_runs import cost, progress
from tests.fakes.executorctl import Live, ctl
from tests.fakes.services import ended


async def on(api: Api, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(ctl, *arguments, socket=api.socket)


async def test_a_run_is_submitted_followed_and_explained() -> None:
    async with serving() as api:
        following = asyncio.create_task(
            on(api, "run", "--id", "r-7", "-i", "python:3.11", "-e", "A=1", "--", "x", "--y")
        )
        async with asyncio.timeout(30):
            await api.parts.manager.submitted.wait()
        await api.parts.manager.move("r-7", State.RUNNING)
        await api.parts.consoles.write("r-7", b"\xff binary\n")
        await api.parts.consoles.lose("r-7", 2048)
        await api.parts.consoles.write("r-7", b"warning\n", "stderr")
        run = api.parts.manager.kept["r-7"][0]
        await api.parts.manager.move("r-7", State.FAILED, **ended(run))
        await api.parts.consoles.seal("r-7")
        done = await following
    said = done.stderr.decode()
    assert done.returncode == 3, said
    assert done.stdout == b"\xff binary\n"
    assert "2.0 KiB of output is missing here" in said
    assert "warning\n" in said
    assert "r-7 Failed after 3.0 s (exit code 3)" in said
    assert "executorctl logs r-7" in said
    assert "1 added; kept as sha256:aaaaaaaaaaaa (10 B sent), now the project's head" in said


async def test_every_looking_command_understands_the_real_answers() -> None:
    async with serving() as api:
        run = api.parts.manager.add("r-1", state=State.QUEUED)
        await api.parts.manager.move("r-1", State.FAILED, **ended(run))
        api.parts.manager.add("r-2")
        await api.parts.consoles.write("r-1", b"one\ntwo\n")
        for arguments, expected in (
            (("ps", "-a"), "Exit code 3."),
            (("ps",), "next in the queue"),
            (("show", "r-1"), "accuracy = 0.9"),
            (("show", "r-2"), "fetching, 1 of 3 files"),
            (("logs", "r-1"), "one\ntwo\n"),
            (("logs", "--since", "4", "--stream", "stdout", "r-1"), "two\n"),
            (("events",), "Queued → Failed"),
            (("events", "--after", "2"), "r-2  Queued"),
            (("stats",), "0.50 of 2 cores"),
            (("stats", "r-1"), "1.5 s of CPU"),
            (("node",), "version 20.10.24"),
            (("cache",), "75.0% of files"),
            (("cache", "show"), "pinned by".upper()),
            (("cache", "prune", "--dry-run"), "3 entries would go, freeing 30 B."),
            (("images",), "python:3.11"),
            (("doctor",), "ok       engine"),
        ):
            done = await on(api, *arguments)
            assert done.returncode == 0, (arguments, done.stderr)
            assert expected in done.stdout.decode(), (arguments, done.stdout)
            if arguments[0] not in ("logs", "events"):
                machines = await on(api, "--json", *arguments)
                assert isinstance(json.loads(machines.stdout), dict), arguments


async def test_asking_commands_are_understood_by_the_real_server() -> None:
    async with serving() as api:
        api.parts.manager.add("r-1")
        done = await on(api, "stop", "--grace", "2", "--reason", "enough", "r-1")
        assert done.returncode == 0, done.stderr
        (order,) = api.parts.manager.orders
        assert (order.grace_seconds, order.reason) == (2.0, "enough")
        assert (await on(api, "files", "r-1")).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [("drain", "--mode", "fast"), ("resume",)],
)
async def test_what_has_nothing_behind_it_yet_is_said_so(arguments: tuple[str, ...]) -> None:
    async with serving() as api:
        api.parts.manager.add("r-1")
        done = await on(api, *arguments)
    assert done.returncode == 1
    assert "nothing behind it" in done.stderr.decode()


async def test_a_field_that_the_server_refuses_is_named() -> None:
    async with serving() as api:
        done = await on(api, "run", "--project", "a b", "-i", "x", "--", "x")
    assert done.returncode == 1
    assert "/project" in done.stderr.decode()


async def test_following_goes_on_over_a_restart_of_the_real_server() -> None:
    async with serving() as api:
        api.parts.manager.add("r-1")
        with Live("logs", "-f", "r-1", socket=api.socket) as live:
            await api.parts.consoles.write("r-1", b"one\n")
            await asyncio.to_thread(live.until, "out", b"one\n")
            await api.server.stop()
            await api.parts.consoles.write("r-1", b"two\n")
            await asyncio.to_thread(live.until, "err", b"Trying again")
            await api.server.start()
            await asyncio.to_thread(live.until, "out", b"two\n")
            run = api.parts.manager.kept["r-1"][0]
            await api.parts.manager.move("r-1", State.FAILED, **ended(run))
            await api.parts.consoles.seal("r-1")
            assert await asyncio.to_thread(live.end) == 0
            assert live.seen["out"] == b"one\ntwo\n"


def test_the_fake_daemon_answers_in_the_daemons_own_types(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "s") as daemon:
        run = daemon.add(project="a/b", command=["x"])
        run.go("Preparing", cost("queue", 0.1))
        run.show(prepare=progress("fetching", files_done=1))
        run.write(b"text")
        run.write(b"\xff")
        msgspec.convert(run.answer(timeline=True), answers.RunAnswer)
        run.end("Failed", exit_code=3, reason="exit_code", side="user")
        ended_run = msgspec.convert(run.answer(timeline=True), answers.RunAnswer)
        assert ended_run.exit_code == 3
        records = [
            msgspec.convert(piece, answers.LogRecord) for piece in daemon.console_from(run, 0)
        ]
        assert [record.offset for record in records] == [0, 4]
        for event in daemon.events:
            msgspec.convert(event, CloudEvent)

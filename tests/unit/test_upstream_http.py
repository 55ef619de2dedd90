"""Journal, outbox and HTTP sink against a real server on loopback that misbehaves."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from functools import partial
from pathlib import Path

import pytest
import structlog

from executord.core.cloudevents import cloud_event
from executord.journal.journal import SqliteJournal
from executord.upstream.http import HttpSink
from executord.upstream.outbox import Outbox
from executord.upstream.sinks import Again, Delivered, Refused, Verdict
from tests.fakes.lives import accepted, begun, ended, eventually, nothing_waits, transition
from tests.fakes.receiver import Answer, Receiver

ROOT = Path(__file__).parents[2]
SECRET = "Bearer s3cr3t-canary"


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def sink(receiver: Receiver) -> AsyncIterator[HttpSink]:
    sink = sink_to(receiver)
    yield sink
    await sink.close()


def sink_to(receiver: Receiver, headers_file: Path | None = None) -> HttpSink:
    return HttpSink(
        url=receiver.url,
        clock=SystemClock(),
        headers_file=headers_file,
        connect_seconds=1.0,
        total_seconds=1.0,
    )


async def delivered(sink: HttpSink, *numbers: int) -> Verdict:
    return await sink.deliver(
        [cloud_event("n", transition("r-1", number, seq=number)) for number in numbers]
    )


# -- one batch -------------------------------------------------------------------------------------


async def test_a_batch_arrives_as_cloudevents(receiver: Receiver, sink: HttpSink) -> None:
    assert await delivered(sink, 1, 2) == Delivered()
    assert await delivered(sink, 3) == Delivered()
    receiver.check()
    assert receiver.numbers("r-1") == [1, 2, 3]


@pytest.mark.parametrize("status", [301, 307, 408, 425, 429, 500, 502, 503, 504, 507])
async def test_trouble_that_passes_means_again(
    receiver: Receiver, sink: HttpSink, status: int
) -> None:
    receiver.answers.append(Answer(status, {"Location": receiver.url}, "busy\r\n\x1b[31m now"))
    verdict = await delivered(sink, 1)
    assert verdict == Again(why=f"The upstream answered {status}: busy   [31m now.")
    assert receiver.requests == 1


@pytest.mark.parametrize("status", [400, 409, 413, 422, 451])
async def test_other_4xx_refuse_the_event(receiver: Receiver, sink: HttpSink, status: int) -> None:
    receiver.always = Answer(status, body="no")
    assert await delivered(sink, 1) == Refused(why=f"The upstream answered {status}: no.")


@pytest.mark.parametrize("status", [401, 403, 404, 405])
async def test_what_an_empty_batch_is_answered_too_is_no_runs_fault(
    receiver: Receiver, sink: HttpSink, status: int
) -> None:
    receiver.always = Answer(status)
    assert isinstance(await delivered(sink, 1), Again)
    receiver.always = None
    receiver.refuse = {"r-1": status}
    assert isinstance(await delivered(sink, 1), Refused)


async def test_retry_after_is_understood_as_seconds_and_as_a_date(
    receiver: Receiver, sink: HttpSink
) -> None:
    async def asked(value: str) -> float | None:
        receiver.answers.append(Answer(503, {"Retry-After": value}))
        verdict = await delivered(sink, 1)
        assert isinstance(verdict, Again)
        return verdict.after_seconds

    assert await asked("7") == 7.0
    assert await asked(formatdate(time.time() + 50, usegmt=True)) == pytest.approx(50, abs=2)
    assert await asked(formatdate(time.time() - 50, usegmt=True)) == 0.0
    for nonsense in ("", "soon", "-5", "٣", "9" * 40, "1e9"):
        assert await asked(nonsense) is None, nonsense


async def test_nobody_there_slow_and_cut_off_mean_again(receiver: Receiver, sink: HttpSink) -> None:
    receiver.lose_replies = 1
    assert isinstance(await delivered(sink, 1), Again)
    receiver.slow_seconds = 3
    assert isinstance(await delivered(sink, 1), Again)
    receiver.slow_seconds = 0
    receiver.go_down()
    verdict = await delivered(sink, 1)
    assert isinstance(verdict, Again)
    assert "cannot be reached" in verdict.why
    receiver.go_up()
    assert await delivered(sink, 1) == Delivered()
    receiver.check()


async def test_an_address_that_is_none_means_again() -> None:
    sink = HttpSink(url="http://name.invalid:1/x", clock=SystemClock(), total_seconds=2.0)
    assert isinstance(await delivered(sink, 1), Again)
    await sink.close()


async def test_an_endless_answer_is_not_read(receiver: Receiver, sink: HttpSink) -> None:
    receiver.answers.append(Answer(500, body="x" * 5_000_000))
    verdict = await delivered(sink, 1)
    assert isinstance(verdict, Again)
    assert len(verdict.why) < 400
    assert await delivered(sink, 1) == Delivered()


async def test_headers_come_from_the_file_as_it_is_now(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.touch(0o600)
    path.write_text(f"Authorization: {SECRET}\n")
    sink = sink_to(receiver, path)
    assert await delivered(sink, 1) == Delivered()
    path.write_text("Authorization: another\n")
    assert await delivered(sink, 2) == Delivered()
    path.chmod(0o644)
    verdict = await delivered(sink, 3)
    assert isinstance(verdict, Again)
    assert "chmod" in verdict.why
    await sink.close()
    assert [headers["Authorization"] for headers in receiver.headers] == [SECRET, "another"]


# -- from the journal to the receiver --------------------------------------------------------------


@asynccontextmanager
async def delivering(
    folder: Path, receiver: Receiver, headers_file: Path | None = None
) -> AsyncIterator[SqliteJournal]:
    """A daemon's life, as far as it concerns the upstream."""
    journal = SqliteJournal(folder / "journal.sqlite", clock=SystemClock())
    await journal.open()
    sink = sink_to(receiver, headers_file)
    outbox = Outbox(
        journal=journal,
        sink=sink,
        node="n",
        clock=SystemClock(),
        draw=lambda: 0.0,
        events_a_batch=20,
    )
    journal.subscribe(outbox.wake)
    task = asyncio.create_task(outbox.run())
    try:
        yield journal
    finally:
        outbox.stop()
        async with asyncio.timeout(10):
            await task
        await sink.close()
        await journal.close()


async def lived(journal: SqliteJournal, *names: str) -> None:
    for name in names:
        await ended(journal, await begun(journal, await accepted(journal, name)))


async def here(receiver: Receiver, distinct: int) -> None:
    await asyncio.to_thread(receiver.wait_for, distinct)


async def test_everything_arrives_in_order_though_the_upstream_comes_and_goes(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with delivering(tmp_path, receiver) as journal:
        receiver.go_down()
        await lived(journal, *(f"a-{n}" for n in range(30)))
        receiver.go_up()
        await lived(journal, *(f"b-{n}" for n in range(30)))
        receiver.lose_replies = 1
        await lived(journal, *(f"c-{n}" for n in range(30)))
        await here(receiver, 360)
    receiver.check()
    assert receiver.distinct_seqs() == list(range(1, 361))
    assert receiver.repeats > 0


@pytest.mark.parametrize("keeps_half", [False, True])
async def test_a_run_that_is_answered_400_is_parked_and_no_other(
    tmp_path: Path, receiver: Receiver, keeps_half: bool
) -> None:
    receiver.refuse, receiver.keeps_half = {"r-7": 400}, keeps_half
    with structlog.testing.capture_logs() as logs:
        async with delivering(tmp_path, receiver) as journal:
            await lived(journal, *(f"r-{n}" for n in range(15)))
            await here(receiver, 56)
            await eventually(partial(nothing_waits, journal))
            state = await journal.outbox_state()
            assert state.parked_runs == ("r-7",)
            assert state.pending == 0
    receiver.check()
    assert receiver.numbers("r-7") == []
    assert len(receiver.distinct_seqs()) == 56
    (parked,) = [entry for entry in logs if entry["event"] == "upstream.run_parked"]
    assert parked["run_id"] == "r-7"
    assert parked["log_level"] == "error"


async def test_a_restart_in_the_middle_leaves_no_gap(tmp_path: Path, receiver: Receiver) -> None:
    for life in range(4):
        receiver.lose_replies = 1
        receiver.slow_seconds = 0.03
        async with delivering(tmp_path, receiver) as journal:
            await lived(journal, *(f"life-{life}-{n}" for n in range(25)))
    async with delivering(tmp_path, receiver):
        await here(receiver, 400)
    receiver.check()
    assert receiver.distinct_seqs() == list(range(1, 401))


async def test_an_expired_token_parks_nothing_and_is_never_logged(
    tmp_path: Path, receiver: Receiver
) -> None:
    headers = tmp_path / "headers"
    headers.touch(0o600)
    headers.write_text(f"Authorization: {SECRET}\n")
    receiver.always = Answer(401, body="token expired")
    with structlog.testing.capture_logs() as logs:
        async with delivering(tmp_path, receiver, headers) as journal:
            await lived(journal, "r-1", "r-2")
            await asyncio.sleep(0.1)
            receiver.always = None
            await here(receiver, 8)
            assert (await journal.outbox_state()).parked_runs == ()
    receiver.check()
    assert "token expired" in str(logs)
    assert "canary" not in str(logs)


def reporting_writer(*arguments: object) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "tests.fakes.reporting_writer", *map(str, arguments)]
    return subprocess.Popen(program, cwd=ROOT)


async def test_killed_between_delivery_and_mark_it_repeats_but_skips_nothing(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.slow_seconds = 0.01
    for life in range(3):
        with reporting_writer(tmp_path / "journal.sqlite", receiver.url, f"life-{life}") as daemon:
            seen = len(receiver.distinct_seqs())
            await asyncio.to_thread(receiver.wait_for, seen + 60)
            receiver.go_down()
            await asyncio.sleep(0.1)
            daemon.kill()
        receiver.go_up()
    async with delivering(tmp_path, receiver) as journal:
        await eventually(partial(nothing_waits, journal))
        last = await journal.last_seq()
    receiver.check()
    assert receiver.distinct_seqs() == list(range(1, last + 1))

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executord.cli import resume
from executord.cli.client import Client
from executord.cli.errors import ProblemError, UnreachableError
from executord.cli.resume import Patience, Record, record_of
from tests.fakes.daemon import FakeDaemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as fake:
        yield fake


@pytest.fixture
def client(daemon: FakeDaemon) -> Client:
    return Client(str(daemon.path), deadline_seconds=10)


def bytes_of(records: list[Record]) -> bytes:
    return b"".join(record.data for record in records)


def follow(client: Client, run_id: str, notices: list[str], since: int = 0) -> Iterator[Record]:
    return resume.console(client, run_id, since=since, patience=Patience(notices.append))


def test_a_followed_console_survives_a_killed_daemon_without_loss_or_repetition(
    daemon: FakeDaemon, client: Client
) -> None:
    run = daemon.add()
    notices: list[str] = []
    records = follow(client, run.id, notices)
    run.write(b"one\n")
    got = [next(records)]
    daemon.stop()
    threading.Timer(0.3, daemon.start).start()
    run.write(b"two\n")
    got.append(next(records))
    run.write(b"three\n")
    run.end("Succeeded", exit_code=0)
    got += records
    assert bytes_of(got) == b"one\ntwo\nthree\n"
    assert len(notices) == 2
    assert "Trying again" in notices[0]
    assert notices[1] == "Connected to the daemon again."


def test_a_stream_that_a_leaving_daemon_ends_properly_is_not_taken_for_the_end(
    daemon: FakeDaemon, client: Client
) -> None:
    run = daemon.add()
    records = follow(client, run.id, [])
    run.write(b"one\n")
    got = [next(records)]
    daemon.stop(properly=True)
    daemon.start()
    run.write(b"two\n")
    run.end("Succeeded", exit_code=0)
    got += records
    assert bytes_of(got) == b"one\ntwo\n"


def test_following_from_within_a_record_gives_its_rest(daemon: FakeDaemon, client: Client) -> None:
    run = daemon.add()
    run.write(b"0123456789")
    run.end("Succeeded", exit_code=0)
    got = list(follow(client, run.id, [], since=4))
    assert [(record.offset, record.data) for record in got] == [(4, b"456789")]


def test_bytes_that_are_no_text_arrive_as_they_were(daemon: FakeDaemon, client: Client) -> None:
    run = daemon.add()
    data = bytes(range(256))
    run.write(data)
    run.end("Succeeded", exit_code=0)
    assert bytes_of(list(follow(client, run.id, []))) == data


def test_a_gap_is_handed_on_and_counted(daemon: FakeDaemon, client: Client) -> None:
    run = daemon.add()
    run.write(b"head")
    run.write(b"", "gap", lost_bytes=1000)
    run.write(b"tail")
    run.end("Succeeded", exit_code=0)
    got = list(follow(client, run.id, []))
    assert [(r.offset, r.stream, r.lost_bytes) for r in got] == [
        (0, "stdout", 0),
        (4, "gap", 1000),
        (1004, "stdout", 0),
    ]


def test_a_console_that_is_not_followed_is_read_page_by_page(
    daemon: FakeDaemon, client: Client
) -> None:
    run = daemon.add()
    for number in range(7):
        run.write(b"%d\n" % number)
    got = resume.console(client, run.id, follow=False, patience=Patience(lambda _: None))
    assert bytes_of(list(got)) == b"0\n1\n2\n3\n4\n5\n6\n"


def test_one_part_of_the_console_is_read_over_pages_that_hold_nothing_of_it(
    daemon: FakeDaemon, client: Client
) -> None:
    run = daemon.add()
    for _ in range(4):
        run.write(b"noise\n", "stderr")
    run.write(b"wanted\n")
    got = resume.console(
        client, run.id, stream="stdout", follow=False, patience=Patience(lambda _: None)
    )
    assert bytes_of(list(got)) == b"wanted\n"


def test_a_console_of_an_unknown_run_is_not_waited_for(client: Client) -> None:
    with pytest.raises(ProblemError):
        list(follow(client, "nope", []))


def test_followed_events_survive_a_killed_daemon_without_loss_or_repetition(
    daemon: FakeDaemon, client: Client
) -> None:
    run = daemon.add()
    run.go("Scheduled")
    events = resume.events(client, patience=Patience(lambda _: None))
    got = [next(events), next(events)]
    daemon.stop()
    daemon.start()
    run.go("Preparing")
    run.go("Running")
    got += [next(events), next(events)]
    assert [resume.sequence_of(event) for event in got] == [1, 2, 3, 4]


def test_events_that_are_not_followed_are_read_page_by_page_after_a_number(
    daemon: FakeDaemon, client: Client
) -> None:
    run = daemon.add()
    for state in ("Scheduled", "Preparing", "Running", "Finishing"):
        run.go(state)
    events = resume.events(client, after=1, follow=False, patience=Patience(lambda _: None))
    assert [resume.sequence_of(event) for event in events] == [2, 3, 4, 5]


def test_patience_waits_longer_each_time_and_says_so_once() -> None:
    waited: list[float] = []
    told: list[str] = []
    patience = Patience(told.append, sleep=waited.append)
    for _ in range(8):
        patience.lost(UnreachableError("Gone."))
    assert waited == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert told == ["Gone. Trying again…"]


def test_patience_begins_anew_after_a_good_answer() -> None:
    waited: list[float] = []
    patience = Patience(lambda _: None, sleep=waited.append)
    patience.lost(UnreachableError("Gone."))
    patience.connected()
    patience.lost(UnreachableError("Gone."))
    assert waited == [0.1, 0.1]


def test_patience_ends_with_the_error_it_began_with() -> None:
    patience = Patience(lambda _: None, give_up_seconds=0.0, sleep=lambda _: time.sleep(0.01))
    patience.lost(UnreachableError("Gone."))
    with pytest.raises(UnreachableError, match=r"Gone\."):
        patience.lost(UnreachableError("Gone."))


def test_a_refusal_is_not_asked_again_but_a_node_that_is_busy_is() -> None:
    patience = Patience(lambda _: None, sleep=lambda _: None)
    patience.lost(ProblemError(503, {"code": "unavailable"}))
    with pytest.raises(ProblemError):
        patience.lost(ProblemError(403, {"code": "forbidden"}))


def test_a_record_without_its_optional_fields_is_understood() -> None:
    assert record_of({"offset": 3, "stream": "stderr", "data": "x"}) == Record(
        3, 0.0, "stderr", b"x", 0
    )

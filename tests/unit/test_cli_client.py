import grp
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executord.cli.client import Client, QuietError, quoted
from executord.cli.errors import (
    BadAnswerError,
    ConnectionLostError,
    ProblemError,
    UnreachableError,
)
from tests.fakes.daemon import FakeDaemon, problem


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as fake:
        yield fake


@pytest.fixture
def client(daemon: FakeDaemon) -> Client:
    return Client(str(daemon.path), deadline_seconds=10)


class Stub:
    """Answers every connection with the same bytes, as they are."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def test_an_answer_is_the_object_that_was_sent(client: Client) -> None:
    assert client.get("/healthz") == {"status": "ok"}


def test_a_query_leaves_out_what_is_none_and_says_booleans_in_json(
    daemon: FakeDaemon, client: Client
) -> None:
    client.get("/v1/runs", state=None, project="a/b c", limit=5)
    assert daemon.requests[-1] == "GET /v1/runs?project=a%2Fb+c&limit=5"


def test_a_run_id_cannot_leave_its_place_in_the_path(client: Client) -> None:
    with pytest.raises(ProblemError) as raised:
        client.get(f"/v1/runs/{quoted('../../healthz?x')}")
    assert raised.value.code == "unknown_run"


def test_a_problem_keeps_its_code_and_names_the_field(daemon: FakeDaemon, client: Client) -> None:
    daemon.fixed["POST /v1/runs"] = problem(
        422, "invalid_field", "Expected `int`.", pointer="/limits/run_seconds"
    )
    with pytest.raises(ProblemError) as raised:
        client.post("/v1/runs", {})
    assert raised.value.status == 422
    assert raised.value.code == "invalid_field"
    assert raised.value.message == "Expected `int`. (/limits/run_seconds)"


def test_a_full_queue_says_when_to_try_again(daemon: FakeDaemon, client: Client) -> None:
    daemon.fixed["POST /v1/runs"] = problem(429, "queue_full", "Full.", retry_after_seconds=5)
    with pytest.raises(ProblemError) as raised:
        client.post("/v1/runs", {})
    assert "5 s" in raised.value.advice


def test_a_missing_socket_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError) as raised:
        Client(str(tmp_path / "none")).get("/healthz")
    assert str(tmp_path / "none") in raised.value.message
    assert "systemctl start executord" in raised.value.advice


def test_a_socket_that_nobody_listens_at_says_that_the_daemon_has_stopped(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
        with pytest.raises(UnreachableError, match="has stopped"):
            Client(str(tmp_path / "s")).get("/healthz")


def test_a_file_that_is_no_socket_is_not_reachable(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(UnreachableError):
        Client(str(tmp_path / "s")).get("/healthz")


def test_a_path_that_no_socket_can_have_is_not_reachable(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="too long"):
        Client(str(tmp_path / ("x" * 200))).get("/healthz")


def test_a_daemon_that_hangs_meets_the_deadline(daemon: FakeDaemon) -> None:
    daemon.stall_seconds = 3.0
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="did not answer within"):
        Client(str(daemon.path), deadline_seconds=0.2).get("/healthz")
    assert time.monotonic() - began < 2.0


def test_a_daemon_that_drips_its_answer_meets_the_deadline_too(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    left = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not left.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    threading.Thread(target=drip, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="did not answer"):
        Client(str(tmp_path / "s"), deadline_seconds=0.5).get("/healthz")
    assert time.monotonic() - began < 3.0
    left.set()
    listener.close()


def test_a_lost_reply_is_told_apart_from_an_unreachable_daemon(
    daemon: FakeDaemon, client: Client
) -> None:
    daemon.replies_to_lose = 1
    with pytest.raises(ConnectionLostError):
        client.post("/v1/runs", {"id": "r-1", "command": ["true"]})
    assert "r-1" in daemon.runs


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ConnectionLostError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", BadAnswerError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n[{}]", BadAnswerError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", ConnectionLostError),
        (b"", ConnectionLostError),
    ],
)
def test_what_is_no_answer_is_not_taken_for_one(
    tmp_path: Path, answer: bytes, error: type[Exception]
) -> None:
    stub = Stub(tmp_path / "s", answer)
    with pytest.raises(error):
        Client(str(tmp_path / "s"), deadline_seconds=5).get("/healthz")
    stub.close()


def test_a_stream_is_split_at_line_feeds_alone(daemon: FakeDaemon, client: Client) -> None:
    run = daemon.add()
    text = "a\u2028b\x85c\rd"
    run.write(text.encode())
    run.end("Succeeded", exit_code=0)
    records = list(client.stream(f"/v1/runs/{run.id}/logs", since=0, follow=True))
    assert [record["data"] for record in records] == [text]


def test_a_stream_that_is_cut_is_told_apart_from_one_that_ended(
    daemon: FakeDaemon, client: Client
) -> None:
    run = daemon.add()
    run.write(b"one\n")
    stream = client.stream(f"/v1/runs/{run.id}/logs", since=0, follow=True)
    assert next(stream)["data"] == "one\n"
    daemon.cut_streams()
    with pytest.raises(ConnectionLostError):
        next(stream)


def test_a_stream_that_says_nothing_is_given_back_to_be_asked_again(
    daemon: FakeDaemon, client: Client
) -> None:
    run = daemon.add()
    with pytest.raises(QuietError):
        next(client.stream(f"/v1/runs/{run.id}/logs", quiet_seconds=0.1, since=0, follow=True))


def test_a_stream_of_an_unknown_run_is_a_problem(client: Client) -> None:
    with pytest.raises(ProblemError) as raised:
        next(client.stream("/v1/runs/nope/logs", follow=True))
    assert raised.value.code == "unknown_run"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes on another user, which only root may")
def test_a_socket_of_another_group_says_which_group_may_use_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    os.chown(folder, 0, 65534)
    above = [path for path in tmp_path.parents if path != Path("/")] + [tmp_path]
    modes = {path: path.stat().st_mode for path in above}
    groups, group = os.getgroups(), os.getegid()
    try:
        for path in above:
            path.chmod(modes[path] | 0o005)
        os.setgroups([])
        os.setegid(12345)
        os.seteuid(12345)
        with pytest.raises(UnreachableError) as raised:
            Client(str(folder / "s")).get("/healthz")
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        for path, mode in modes.items():
            path.chmod(mode)
    name = grp.getgrgid(65534).gr_name
    assert f"open to the group {name}" in raised.value.message
    assert f"usermod -aG {name}" in raised.value.advice

"""The service manager is told how we are, over a real datagram socket."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from executord.config import service_manager
from executord.systemd import Notifier, take_sockets


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and its address as NOTIFY_SOCKET has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        if request.param == "path":
            address = str(tmp_path / "notify")
            listening.bind(address)
        else:
            address = f"@executord-test-{os.getpid()}"
            listening.bind(f"\0{address[1:]}")
        yield listening, address


def test_each_message_arrives_as_one_datagram(manager: tuple[socket.socket, str]) -> None:
    listening, address = manager
    notifier = Notifier(address)
    notifier.ready("serving\n2 runs")
    notifier.watchdog()
    notifier.status("3 runs")
    notifier.stopping()
    assert [listening.recv(1000) for _ in range(4)] == [
        b"READY=1\nSTATUS=serving 2 runs",
        b"WATCHDOG=1",
        b"STATUS=3 runs",
        b"STOPPING=1",
    ]


def test_without_a_service_manager_nothing_happens() -> None:
    with capture_logs() as logged:
        Notifier(None).ready()
        Notifier("").watchdog()
    assert logged == []


def test_a_service_manager_that_is_gone_is_logged_and_survived(tmp_path: Path) -> None:
    with capture_logs() as logged:
        Notifier(str(tmp_path / "gone")).ready()
    assert [(entry["event"], entry["message"]) for entry in logged] == [
        ("systemd.not_notified", "READY=1")
    ]


def test_a_service_manager_that_does_not_read_does_not_block_us(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, capture_logs() as logged:
        listening.bind(address)
        for _ in range(2000):
            Notifier(address).watchdog()
    assert "systemd.not_notified" in {entry["event"] for entry in logged}


_TAKE_AND_ANSWER = """
import os
os.environ["LISTEN_PID"] = str(os.getpid())
from executord.config import service_manager
from executord.systemd import take_sockets
(listening,) = take_sockets(service_manager().listen_fds)
assert not os.get_inheritable(3)
listening.setblocking(True)
connection, _ = listening.accept()
connection.sendall(b"hello from the activated one")
"""


def test_a_socket_opened_by_the_service_manager_is_served(tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        shell = f'exec {sys.executable} -c "$CODE" 3<&{listening.fileno()}'
        child = subprocess.Popen(
            ["bash", "-c", shell],
            env={**os.environ, "CODE": _TAKE_AND_ANSWER, "LISTEN_FDS": "1"},
            pass_fds=(listening.fileno(),),
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(20)
            client.connect(path)
            assert client.recv(100) == b"hello from the activated one"
        assert child.wait(timeout=20) == 0


def test_without_activation_there_is_nothing_to_take() -> None:
    assert take_sockets(service_manager({}).listen_fds) == []


def test_a_descriptor_that_does_not_listen_is_refused_and_left_open() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="no listening stream socket"):
            take_sockets([ours.fileno()])
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_a_descriptor_that_is_no_socket_is_refused() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(ValueError, match="was passed as a socket"):
            take_sockets([read])
    finally:
        os.close(read)
        os.close(write)

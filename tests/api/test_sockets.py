"""The socket itself: its rights, what is there already, what is left behind."""

import asyncio
import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from executord.api.access import AccessRules
from executord.api.server import ApiServer
from executord.api.sockets import SocketError
from tests.fakes.services import FakeParts


def server(path: Path, **options: object) -> ApiServer:
    return ApiServer(services=FakeParts().services, socket_path=path, **options)  # type: ignore[arg-type]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(directory: Path) -> list[str]:
    return [found.name for found in directory.iterdir()]


async def health(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def test_directory_mode_and_group_are_set_before_anybody_can_connect(tmp_path: Path) -> None:
    path = tmp_path / "run" / "executord.sock"
    group = grp.getgrgid(os.getegid())
    api = server(path, socket_mode=0o620, socket_group=group.gr_name)
    await api.start()
    try:
        assert mode_of(path.parent) == 0o750
        assert mode_of(path) == 0o620
        assert path.stat().st_gid == path.parent.stat().st_gid == group.gr_gid
        assert b" 200 " in await health(path)
    finally:
        await api.stop()
    assert names_in(path.parent) == []


async def test_a_directory_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o711)  # noqa: PTH101
    api = server(tmp_path / "s")
    await api.start()
    await api.stop()
    assert mode_of(tmp_path) == 0o711


async def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    api = server(path)
    await api.start()
    assert b" 200 " in await health(path)
    await api.stop()


async def test_a_living_socket_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, second = server(path), server(path)
    await first.start()
    try:
        with pytest.raises(SocketError, match="Another daemon serves"):
            await second.start()
        assert b" 200 " in await health(path)
    finally:
        await first.stop()


async def test_a_file_that_is_no_socket_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(SocketError, match="no socket"):
        await server(path).start()
    assert path.read_text() == "precious"


async def test_another_daemons_socket_survives_this_ones_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, second = server(path), server(path)
    await first.start()
    path.unlink()
    await second.start()
    await first.stop()
    assert b" 200 " in await health(path)
    await second.stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"socket_group": "no-such-group-here"}, "no-such-group-here"),
        ({"listen": "nonsense"}, "host:port"),
        ({"listen": "127.0.0.1:99999"}, "host:port"),
        ({"listen": "192.0.2.1:9100"}, "Cannot listen on 192.0.2.1:9100"),
    ],
)
async def test_what_cannot_be_listened_on_is_told_and_leaves_nothing(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(SocketError, match=message):
        await server(tmp_path / "s", **options).start()
    assert names_in(tmp_path) == []


async def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match="too long"):
        await server(tmp_path / ("x" * 120)).start()


async def test_rules_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for entry in ("root", "user:", "uid:minus", "role:x"):
        with pytest.raises(ValueError, match="user:NAME"):
            await server(tmp_path / "s", access=AccessRules(read=(entry,))).start()


async def test_a_socket_of_the_service_manager_is_served_and_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "activated"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    api = server(tmp_path / "unused", socket_fd=listener.detach())
    await api.start()
    assert b" 200 " in await health(path)
    await api.stop()
    assert path.exists()
    assert not (tmp_path / "unused").exists()


async def test_a_descriptor_that_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with right, pytest.raises(SocketError, match="not a listening"):
        await server(tmp_path / "s", socket_fd=left.detach()).start()


async def test_a_start_that_failed_can_be_tried_again_and_stop_is_harmless(tmp_path: Path) -> None:
    api = server(tmp_path / "s")
    await api.stop()
    await api.start()
    await api.stop()
    await api.stop()
    await api.start()
    assert b" 200 " in await health(tmp_path / "s")
    await api.stop()

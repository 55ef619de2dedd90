"""The sockets that are listened on. Everything here blocks, for milliseconds."""

import errno
import grp
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

_LONGEST_PATH_BYTES = 107
_BACKLOG = 512
_DIRECTORY_MODE = 0o750
_PROBE_SECONDS = 2.0


class SocketError(Exception):
    """The daemon cannot listen; says where, why, and what to do."""


@dataclass(frozen=True, slots=True)
class OwnSocket:
    """A listening Unix socket that this process has made, and the inode it can be told by."""

    socket: socket.socket
    path: Path
    inode: int


def open_unix(path: Path, *, mode: int, group: str) -> OwnSocket:
    """Visible under its path only with its mode and group set. A dead one there is replaced."""
    gid = _gid_of(group)
    _make_directory(path.parent, gid)
    _refuse_living(path)
    own = path.with_name(f".{os.getpid():x}.sock")
    for name in (path, own):
        if len(os.fsencode(name)) > _LONGEST_PATH_BYTES:
            raise SocketError(f"The socket's path is too long for the kernel: {name}.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        own.unlink(missing_ok=True)
        listener.bind(str(own))
        own.chmod(mode)
        if gid is not None:
            os.chown(own, -1, gid)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        inode = own.stat().st_ino
        own.rename(path)
    except OSError as error:
        listener.close()
        own.unlink(missing_ok=True)
        raise SocketError(f"Cannot make the socket {path}: {error.strerror}.") from error
    return OwnSocket(listener, path, inode)


def remove(own: OwnSocket) -> None:
    """Unless somebody else's is there by now."""
    try:
        if own.path.lstat().st_ino == own.inode:
            own.path.unlink()
    except OSError:
        return


def adopt(fd: int) -> socket.socket:
    """A listening Unix socket that the service manager has made."""
    try:
        listener = socket.socket(fileno=fd)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SocketError(f"File descriptor {fd} is no socket: {error.strerror}.") from error
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listening:
        raise SocketError(f"File descriptor {fd} is not a listening Unix stream socket.")
    listener.setblocking(False)
    return listener


def open_tcp(listen: str) -> socket.socket:
    """`listen` is "host:port"; an IPv6 address stands in brackets."""
    host, port = _host_and_port(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SocketError(f"Cannot listen on {listen} (`api.listen`): {error.strerror}.") from error
    listener.setblocking(False)
    return listener


def _host_and_port(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SocketError(f'`api.listen` has to be "host:port", and is {listen!r}.')
    return host, int(port)


def _gid_of(group: str) -> int | None:
    if not group:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise SocketError(
            f"The group {group!r} (`api.socket_group`) does not exist on this node."
        ) from error


def _make_directory(directory: Path, gid: int | None) -> None:
    try:
        directory.mkdir(mode=_DIRECTORY_MODE, parents=True)
    except FileExistsError:
        return
    except OSError as error:
        raise SocketError(
            f"Cannot make the socket's directory {directory}: {error.strerror}."
        ) from error
    directory.chmod(_DIRECTORY_MODE)
    if gid is not None:
        os.chown(directory, -1, gid)


def _refuse_living(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(f"Cannot look at {path}: {error.strerror}.") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketError(f"{path} is there already, and is no socket; move it away.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return
            raise SocketError(f"Cannot try the socket {path}: {error}.") from error
    raise SocketError(f"Another daemon serves {path} already.")

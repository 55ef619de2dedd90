"""The service manager's side: tell it how we are, and take over the sockets it opened.

The protocols are those of sd_notify(3) and sd_listen_fds(3).
"""

import os
import socket
from collections.abc import Sequence

import structlog

log = structlog.get_logger(__name__)


class Notifier:
    """Tells the service manager what it should know; silent where there is none.

    `address` is NOTIFY_SOCKET: a path, or a name that begins with "@". Nothing here blocks or
    raises: a message that cannot be sent is logged, and the service manager draws its conclusions.
    """

    def __init__(self, address: str | None) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address

    def ready(self, status: str = "") -> None:
        """Start-up is over."""
        self._send("READY=1", *_status(status))

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """One line that `systemctl status` shows."""
        self._send(*_status(text))

    def watchdog(self) -> None:
        """We live. To be sent at least twice as often as the watchdog's time asks for."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("systemd.not_notified", message=lines[0], error=str(error))


def take_sockets(fds: Sequence[int]) -> list[socket.socket]:
    """The listening sockets among the descriptors handed over, no longer inherited by children.

    Raises ValueError for a descriptor that is not a listening stream socket: the unit is wrong.
    """
    return [_take(fd) for fd in fds]


def _take(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"file descriptor {fd} was passed as a socket: {error.strerror}") from None
    listens = taken.type == socket.SOCK_STREAM and taken.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    )
    if not listens:
        taken.detach()
        raise ValueError(f"file descriptor {fd} was passed, but is no listening stream socket")
    taken.setblocking(False)
    return taken


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()

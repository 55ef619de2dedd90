"""Why the daemon's socket cannot be reached, as a sentence with what to do."""

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from executord.cli.errors import UnreachableError

_SUPERUSERS = "root"  # nobody should be told to join this group
_OTHER_SOCKET = "name another socket with --socket or EXECUTORD_SOCKET."


def explain(socket_path: str, error: OSError, deadline_seconds: float) -> UnreachableError:
    """`error` is what connecting to `socket_path` ended with."""
    if isinstance(error, PermissionError):
        return _permission_denied(socket_path)
    if isinstance(error, FileNotFoundError):
        return UnreachableError(
            f"There is no socket at {socket_path}: the daemon is not running, or uses another one.",
            advice=f"Start it with `systemctl start executord`, or {_OTHER_SOCKET}",
        )
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(
            f"Nobody listens at {socket_path}: the daemon has stopped.",
            advice="Start it with `systemctl start executord`; `journalctl -u executord` says why.",
        )
    if isinstance(error, TimeoutError | BlockingIOError):
        return UnreachableError(
            f"The daemon at {socket_path} took no connection within {deadline_seconds:g} s.",
            advice="It is overloaded or stuck: see `journalctl -u executord`, then try again.",
        )
    if error.errno == errno.ENOTSOCK or isinstance(error, NotADirectoryError):
        why = "it is not a socket"
    else:
        why = error.strerror or str(error)
    return UnreachableError(
        f"The daemon cannot be reached at {socket_path}: {why}.", advice=_capital(_OTHER_SOCKET)
    )


def _permission_denied(socket_path: str) -> UnreachableError:
    message = f"You may not use the daemon's socket {socket_path}."
    group = _open_to_group(socket_path)
    if group == _SUPERUSERS:
        return UnreachableError(
            f"{message} It is open to root alone.",
            advice="Ask whoever runs this node to set `api.socket_group` to a group of yours.",
        )
    if group is None:
        return UnreachableError(message, advice="Ask whoever runs this node for access to it.")
    return UnreachableError(
        f"{message} It is open to the group {group}, and you are not in it.",
        advice=f"Ask for `usermod -aG {group} {_user()}`, then log in again.",
    )


def _open_to_group(socket_path: str) -> str | None:
    """The group that may use the socket, or the closest folder above it that hides it from us."""
    for path in (Path(socket_path), *Path(socket_path).parents):
        try:
            facts = path.stat()
        except OSError:
            continue
        needed = stat.S_IXGRP if stat.S_ISDIR(facts.st_mode) else stat.S_IWGRP
        if not facts.st_mode & needed or facts.st_gid in (os.getegid(), *os.getgroups()):
            return None
        try:
            return grp.getgrgid(facts.st_gid).gr_name
        except KeyError:
            return str(facts.st_gid)
    return None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]

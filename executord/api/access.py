"""Who calls, as the kernel tells it, and what they may do."""

import errno
import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

_SO_PEERGROUPS = 59
_MOST_GROUPS_BYTES = 1024  # the most that getsockopt can be asked for: 256 groups
_UCRED = struct.Struct("3i")


class Role(StrEnum):
    ADMIN = "admin"
    OPERATOR = "operator"
    SUBMIT = "submit"
    READ = "read"


class Access(Enum):
    """What a route asks for."""

    ANYBODY = auto()
    READ_NODE = auto()
    READ_RUNS = auto()
    READ_CACHE = auto()
    SUBMIT = auto()
    CONTROL_RUNS = auto()
    OPERATE = auto()


class Reach(Enum):
    """Whose runs it counts for."""

    OWN = auto()
    ALL = auto()


_OPERATORS = {Role.ADMIN: Reach.ALL, Role.OPERATOR: Reach.ALL}

RIGHTS: Mapping[Access, Mapping[Role, Reach]] = {
    Access.ANYBODY: dict.fromkeys(Role, Reach.ALL),
    Access.READ_NODE: dict.fromkeys(Role, Reach.ALL),
    Access.READ_RUNS: {**_OPERATORS, Role.SUBMIT: Reach.OWN, Role.READ: Reach.ALL},
    Access.READ_CACHE: {**_OPERATORS, Role.READ: Reach.ALL},
    Access.SUBMIT: {**_OPERATORS, Role.SUBMIT: Reach.OWN},
    Access.CONTROL_RUNS: {**_OPERATORS, Role.SUBMIT: Reach.OWN},
    Access.OPERATE: _OPERATORS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The process at the other end of a connection, as it was when it connected."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    pid: int = 0
    roles: frozenset[Role] = frozenset()

    def reach(self, access: Access) -> Reach | None:
        """None where the caller may not; several roles add up."""
        if access is Access.ANYBODY:
            return Reach.ALL
        granted = [reach for role, reach in RIGHTS[access].items() if role in self.roles]
        if not granted:
            return None
        return Reach.ALL if Reach.ALL in granted else Reach.OWN


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """Who has which role: lists of "user:NAME", "group:NAME" and "uid:N".

    Root and the daemon's own user are always admin. Nobody else has a role that is not given here.
    """

    admin: tuple[str, ...] = ()
    operator: tuple[str, ...] = ()
    submit: tuple[str, ...] = ()
    read: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Roles:
    """The rules with their names looked up."""

    by_uid: Mapping[int, frozenset[Role]] = field(default_factory=dict)
    by_gid: Mapping[int, frozenset[Role]] = field(default_factory=dict)

    def of(self, uid: int, gids: Iterable[int]) -> frozenset[Role]:
        found = self.by_uid.get(uid, frozenset())
        for gid in gids:
            found |= self.by_gid.get(gid, frozenset())
        return found


def look_up(rules: AccessRules) -> Roles:
    """Blocks on the system's user database. ValueError for an entry that has no known form.

    A name that does not exist here is logged and gives nobody anything.
    """
    by_uid: dict[int, frozenset[Role]] = {}
    by_gid: dict[int, frozenset[Role]] = {}
    for uid in {0, os.geteuid()}:
        by_uid[uid] = frozenset({Role.ADMIN})
    for role in Role:
        for entry in getattr(rules, role.value):
            kind, _, name = entry.partition(":")
            number = _number_of(kind, name, entry)
            if number is None:
                log.warning("access.name_unknown", entry=entry, role=role.value)
                continue
            held = by_gid if kind == "group" else by_uid
            held[number] = held.get(number, frozenset()) | {role}
    return Roles(by_uid, by_gid)


def _number_of(kind: str, name: str, entry: str) -> int | None:
    try:
        if kind == "user" and name:
            return pwd.getpwnam(name).pw_uid
        if kind == "group" and name:
            return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
    if kind == "uid" and name.isascii() and name.isdigit():
        return int(name)
    raise ValueError(f'{entry!r} is not "user:NAME", "group:NAME" or "uid:N"')


class PeerSocket(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int) -> bytes: ...


def caller_of(peer: PeerSocket, roles: Roles) -> Caller:
    """OSError where the kernel does not tell."""
    pid, uid, gid = _UCRED.unpack(
        peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    groups = _groups_of(peer, uid)
    return Caller(uid=uid, gid=gid, groups=groups, pid=pid, roles=roles.of(uid, (gid, *groups)))


def _groups_of(peer: PeerSocket, uid: int) -> tuple[int, ...]:
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        log.warning("access.too_many_groups", uid=uid)
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def user_name(uid: int) -> str:
    """Blocks on the system's user database; "uid:N" for somebody it does not know."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid:{uid}"

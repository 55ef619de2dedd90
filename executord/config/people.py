"""Users, groups, file modes, and who has which role."""

import grp
import pwd
import re
from typing import Any

from executord.config.problems import BadValueError
from executord.config.settings import UserIds
from executord.config.values import a_list, shown, text

_PRINCIPAL = re.compile(r"(user|group):[^\s:,]{1,64}|uid:\d{1,10}")
_LARGEST_ID = (1 << 32) - 2
_MOST_ID_DIGITS = 10


def file_mode(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise BadValueError(
            f'{shown(value)} is not a file mode; write three octal digits in quotes, as "0660"'
        )
    mode = int(value, 8)
    if mode & 0o600 != 0o600:
        raise BadValueError(f"{value} shuts out the daemon's own user; begin with 6 or 7")
    return mode


def group(value: Any) -> str:
    """A group's name or number that exists here, or "" for the daemon's own."""
    name = text(value)
    if name:
        group_id(name)
    return name


def group_id(name: str) -> int:
    if name.isdecimal():
        return _checked_id(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise BadValueError(
            f"there is no group {name!r} on this machine; create it or use its number"
        ) from None


def user_ids(value: Any) -> UserIds:
    """From "1000:1000", "name" (with the name's own group), or "name:group"."""
    user, colon, named_group = text(value).partition(":")
    if not user or (colon and not named_group):
        raise BadValueError(f'{shown(value)} is no user; write "1000:1000" or a user\'s name')
    ids = _user_ids(user, named_group)
    if ids.uid == 0:
        raise BadValueError("user code may not run as root; choose an ordinary user")
    return ids


def _user_ids(user: str, named_group: str) -> UserIds:
    if user.isdecimal():
        if not named_group:
            raise BadValueError(f'needs a group too; write "{user}:{user}"')
        return UserIds(_checked_id(user), group_id(named_group))
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise BadValueError(
            f"there is no user {user!r} on this machine; create it or use numbers, as in"
            ' "1000:1000"'
        ) from None
    return UserIds(entry.pw_uid, group_id(named_group) if named_group else entry.pw_gid)


def _checked_id(digits: str) -> int:
    found = int(digits[: _MOST_ID_DIGITS + 1])
    if found > _LARGEST_ID:
        raise BadValueError(f"{found} is larger than any user or group number ({_LARGEST_ID})")
    return found


def principals(value: Any) -> tuple[str, ...]:
    names = tuple(text(each) for each in a_list(value))
    for name in names:
        if not _PRINCIPAL.fullmatch(name):
            raise BadValueError(
                f'{shown(name)} names nobody; write "user:NAME", "group:NAME" or "uid:N"'
            )
    return names

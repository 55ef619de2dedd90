"""What runs may mount: looked at when a run is accepted, and again right before its container.

Links are resolved when the run is accepted, and the resolved path is what the run keeps. When its
turn comes the path has to lead to itself still: whoever may write below an allowed root could have
put a link into its way meanwhile.
"""

import asyncio
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from executord.core.reasons import Fault, FaultError, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Mount
from executord.runs.context import RunRules

SECRETS_TARGET = "/run/secrets"
_ENGINES_OWN = (
    "/proc",
    "/sys",
    "/dev",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/sbin/docker-init",
)


async def allowed_mounts(mounts: Sequence[Mount], rules: RunRules) -> tuple[Mount, ...]:
    """The mounts with their links resolved. Raises RefusedError MOUNT_NOT_ALLOWED."""
    if not mounts:
        return ()
    _check_targets(mounts, rules)
    return await asyncio.to_thread(
        lambda: tuple(_resolved(mount, index, rules) for index, mount in enumerate(mounts))
    )


async def still_allowed(mounts: Sequence[Mount], rules: RunRules) -> tuple[Mount, ...]:
    """Those of the host. FaultError MOUNT_UNUSABLE where one is not what was accepted."""
    ours = [mount for mount in mounts if not mount.revision]
    if ours:
        await asyncio.to_thread(_check_unchanged, ours, rules)
    return tuple(ours)


def _check_targets(mounts: Sequence[Mount], rules: RunRules) -> None:
    taken = (rules.working_dir, SECRETS_TARGET, *_ENGINES_OWN)
    for index, mount in enumerate(mounts):
        for place in taken:
            if _overlap(mount.target, place):
                raise RefusedError(
                    Refusal.MOUNT_NOT_ALLOWED,
                    f"{mount.target} is, holds or lies below {place}, which the run needs for "
                    "itself: choose a place apart from it.",
                    pointer=f"/mounts/{index}/target",
                )


def _overlap(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _resolved(mount: Mount, index: int, rules: RunRules) -> Mount:
    if mount.revision:
        return mount
    source = os.path.realpath(mount.source)
    why_not = _why_not(source, rules)
    if why_not:
        raise RefusedError(
            Refusal.MOUNT_NOT_ALLOWED,
            f"{mount.source} {why_not}.",
            pointer=f"/mounts/{index}/source",
        )
    return Mount(source=source, target=mount.target, read_only=mount.read_only)


def _check_unchanged(mounts: Iterable[Mount], rules: RunRules) -> None:
    for mount in mounts:
        if os.path.realpath(mount.source) == mount.source:
            why_not = _why_not(mount.source, rules)
        else:
            why_not = "has been replaced by a link since the run was accepted"
        if why_not:
            raise FaultError(
                Fault(
                    Reason.MOUNT_UNUSABLE,
                    f"{mount.source}, to be mounted at {mount.target}, {why_not}.",
                    {"target": mount.target},
                )
            )


def _why_not(source: str, rules: RunRules) -> str:
    """Why this path without links cannot be mounted; "" where it can be.

    What lies outside the roots is told alike whether it is there or not.
    """
    path = Path(source)
    if not any(path.is_relative_to(os.path.realpath(root)) for root in rules.allowed_mounts):
        named = ", ".join(str(root) for root in rules.allowed_mounts) or "none"
        return f"lies outside the roots that may be mounted (`runs.allowed_mounts`: {named})"
    for private in rules.private_paths:
        if _overlap(source, os.path.realpath(private)):
            return "is, holds or lies below a place that belongs to the node itself"
    try:
        source.encode()
        mode = os.lstat(source).st_mode
    except UnicodeEncodeError:
        return "leads to a name that is not UTF-8, which the engine cannot be given"
    except FileNotFoundError:
        return "does not exist on this node"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return "is neither a directory nor a file"
    return ""

"""
Which processes are an engine folder's own, and ending exactly those.

A pid from a file or a listing may long be another process. So a process is pinned by a pidfd
first, then looked at, and only then signalled, through the same pidfd.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROC = Path("/proc")
ENGINE_PROGRAMS = frozenset({"dockerd", "containerd", "containerd-shim-runc-v2"})


def command_line(pid: int) -> list[str]:
    """Give a process's arguments; none for one that is gone, a zombie or a kernel thread."""
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(argument) for argument in raw.split(b"\0")][:-1]


def works_for(pid: int, folder: Path, programs: frozenset[str] = ENGINE_PROGRAMS) -> bool:
    """Whether the process is one of the engine's programs, started on a path in the folder."""
    arguments = command_line(pid)
    return bool(
        arguments
        and Path(arguments[0]).name in programs
        and any(f"{folder}/" in argument for argument in arguments[1:])
    )


def runs_in_container(pid: int, container_ids: frozenset[str]) -> bool:
    """Whether its control group is named after one of these containers (64 hex digits each)."""
    try:
        text = (PROC / str(pid) / "cgroup").read_text()
    except OSError:
        return False
    return any(identifier in text for identifier in container_ids)


def all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def pid_in(pidfile: Path) -> int | None:
    try:
        pid = int(pidfile.read_text().strip())
    except (OSError, ValueError):
        return None
    return pid if pid > 1 else None


def end(pid: int, is_ours: Callable[[int], bool], *, grace_seconds: float) -> bool:
    """
    Ask the process to end, kill it when `grace_seconds` are over, and wait till it is gone.

    Nothing is signalled, and the answer is False, if it is gone already or is not ours.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_ours(pid):
            return False
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
            signal.pidfd_send_signal(handle, number)
            if _is_gone(handle, seconds):
                break
        return True
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def _is_gone(handle: int, seconds: float) -> bool:
    """Wait for a pidfd to become readable, which it does when its process ends."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))

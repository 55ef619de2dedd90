"""Reading a run's counters: files are opened once, and read again from their beginning.

A run's own group (`own`) holds its container's group. The own group outlives the container and
counts for all that was ever in it; only the limit, throttling and, with version 1, the kernel's
out-of-memory kills are counted in the container's group alone, and are lost with it.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from executord.usage import texts
from executord.usage.hierarchy import Group

_READ_BYTES = 64 * 1024
_MOST_PROCESSES = 32
_NANOSECONDS = 1_000_000_000
_MICROSECONDS = 1_000_000
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look. Counters grow from the group's beginning; None is what this kernel hides."""

    cpu_seconds: float
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    cpu_throttled_seconds: float | None = None
    memory_bytes: int = 0
    memory_cache_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_peak_bytes: int | None = None
    oom_kills: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    pids: int | None = None


class Counters(Protocol):
    def read(self) -> Reading | None:
        """None when the group is gone. Blocks, for microseconds."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class OpenFiles:
    """Files that are read again and again. One that cannot be opened is tried no more."""

    _descriptors: dict[tuple[Path, str], int | None] = field(default_factory=dict)

    def read(self, directory: Path | None, name: str) -> bytes | None:
        """None when it cannot be read."""
        if directory is None:
            return None
        key = (directory, name)
        try:
            if key not in self._descriptors:
                self._descriptors[key] = None
                self._descriptors[key] = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
            descriptor = self._descriptors[key]
            return None if descriptor is None else os.pread(descriptor, _READ_BYTES, 0)
        except OSError:
            return None

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            if descriptor is not None:
                os.close(descriptor)
        self._descriptors.clear()


class CountersV1:
    """`own` is the run's group, or the container's where the run has none of its own."""

    def __init__(self, *, own: Group, container: Group, proc: Path, pid: int) -> None:
        self._own = own
        self._container = container
        self._io = ProcessesIo(proc, container.get("pids") or container.get("memory"), pid)
        self._files = OpenFiles()

    def read(self) -> Reading | None:
        usage = texts.number(self._read(self._own, "cpuacct", "cpuacct.usage"))
        if usage is None:
            return None
        times = texts.pairs(self._read(self._own, "cpuacct", "cpuacct.stat"))
        cpu = texts.pairs(self._read(self._container, "cpu", "cpu.stat"))
        memory = texts.pairs(self._read(self._own, "memory", "memory.stat"))
        used = texts.number(self._read(self._own, "memory", "memory.usage_in_bytes")) or 0
        oom = texts.pairs(self._read(self._container, "memory", "memory.oom_control"))
        limit = self._read(self._container, "memory", "memory.limit_in_bytes")
        peak = self._read(self._own, "memory", "memory.max_usage_in_bytes")
        blkio = self._read(self._own, "blkio", "blkio.throttle.io_service_bytes_recursive")
        read_bytes, written_bytes = _larger(self._io.read(), texts.blkio(blkio))
        return Reading(
            cpu_seconds=usage / _NANOSECONDS,
            cpu_user_seconds=_scaled(times.get(b"user"), _TICKS),
            cpu_system_seconds=_scaled(times.get(b"system"), _TICKS),
            cpu_throttled_seconds=_scaled(cpu.get(b"throttled_time"), _NANOSECONDS),
            memory_bytes=max(0, used - memory.get(b"total_inactive_file", 0)),
            memory_cache_bytes=memory.get(b"total_cache"),
            memory_limit_bytes=texts.limit(limit),
            memory_peak_bytes=texts.number(peak),
            oom_kills=oom.get(b"oom_kill"),
            read_bytes=read_bytes,
            written_bytes=written_bytes,
            pids=texts.number(self._read(self._own, "pids", "pids.current")),
        )

    def close(self) -> None:
        self._files.close()

    def _read(self, group: Group, controller: str, name: str) -> bytes | None:
        return self._files.read(group.get(controller), name)


class CountersV2:
    def __init__(self, *, own: Group, container: Group) -> None:
        self._own = own.get("")
        self._container = container.get("")
        self._files = OpenFiles()

    def read(self) -> Reading | None:
        cpu = texts.pairs(self._read(self._own, "cpu.stat"))
        if b"usage_usec" not in cpu:
            return None
        inside = texts.pairs(self._read(self._container, "cpu.stat"))
        memory = texts.pairs(self._read(self._own, "memory.stat"))
        used = texts.number(self._read(self._own, "memory.current")) or 0
        events = texts.pairs(self._read(self._own, "memory.events"))
        read_bytes, written_bytes = _larger(texts.io_stat(self._read(self._own, "io.stat")))
        return Reading(
            cpu_seconds=cpu[b"usage_usec"] / _MICROSECONDS,
            cpu_user_seconds=_scaled(cpu.get(b"user_usec"), _MICROSECONDS),
            cpu_system_seconds=_scaled(cpu.get(b"system_usec"), _MICROSECONDS),
            cpu_throttled_seconds=_scaled(inside.get(b"throttled_usec"), _MICROSECONDS),
            memory_bytes=max(0, used - memory.get(b"inactive_file", 0)),
            memory_cache_bytes=memory.get(b"file"),
            memory_limit_bytes=texts.limit(self._read(self._container, "memory.max")),
            memory_peak_bytes=texts.number(self._read(self._own, "memory.peak")),
            oom_kills=events.get(b"oom_kill"),
            read_bytes=read_bytes,
            written_bytes=written_bytes,
            pids=texts.number(self._read(self._own, "pids.current")),
        )

    def close(self) -> None:
        self._files.close()

    def _read(self, directory: Path | None, name: str) -> bytes | None:
        return self._files.read(directory, name)


@dataclass(slots=True)
class ProcessesIo:
    """Version 1's block counters miss buffered writes; the processes' own do not.

    A process that has been waited for is counted by its parent, so the sum over those that live
    is that of all; what init has gathered can be read until it is waited for itself.
    """

    proc: Path
    group: Path | None
    init: int

    def read(self) -> tuple[int, int] | None:
        totals = [io for pid in self._pids() if (io := self._of(pid)) is not None]
        if not totals:
            return None
        return sum(io[0] for io in totals), sum(io[1] for io in totals)

    def _pids(self) -> set[int]:
        pids = {self.init} if self.init else set()
        if self.group is not None:
            try:
                listed = _contents(f"{self.group}/cgroup.procs").split()
            except OSError:
                listed = []
            pids.update(int(pid) for pid in listed[:_MOST_PROCESSES])
        return pids

    def _of(self, pid: int) -> tuple[int, int] | None:
        try:
            return texts.process_io(_contents(f"{self.proc}/{pid}/io"))
        except OSError:
            return None


class NetworkCounters:
    """Of the container's own network; nothing is told where it shares the host's."""

    def __init__(self, proc: Path, pid: int) -> None:
        self._files = OpenFiles()
        directory = proc / str(pid) / "net"
        self._directory = None if _shares_host_network(proc, directory / "dev") else directory

    def read(self) -> tuple[int, int] | None:
        return texts.net_dev(self._files.read(self._directory, "dev"))

    def close(self) -> None:
        self._files.close()


def _shares_host_network(proc: Path, path: Path) -> bool:
    """Each network has files of its own there, told apart by their inodes without privileges."""
    ours = {_inode(proc / host / "net" / "dev") for host in ("self", "1")}
    inode = _inode(path)
    return inode is None or inode in ours


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _contents(path: str) -> bytes:
    """OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)


def _scaled(value: int | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _larger(*counts: tuple[int, int] | None) -> tuple[int | None, int | None]:
    known = [count for count in counts if count is not None]
    if not known:
        return None, None
    return max(count[0] for count in known), max(count[1] for count in known)

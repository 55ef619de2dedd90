"""One run that is being watched: its counters, its samples, and what they add up to."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TypeVar

import psutil

from executord.core.run import UsageSummary
from executord.ports import UsageSample
from executord.usage.counters import (
    Counters,
    CountersV1,
    CountersV2,
    NetworkCounters,
    Reading,
)
from executord.usage.hierarchy import Group, Hierarchy
from executord.usage.series import Series

N = TypeVar("N", int, float)

_RING = 600


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found, with when it was, on both clocks."""

    time: float
    monotonic: float
    reading: Reading
    network: tuple[int, int] | None


@dataclass(slots=True)
class Probe:
    """The open files of one run. It may be used by several threads; closing waits for them."""

    counters: Counters
    network: NetworkCounters | None
    process_began_at: float | None
    _lock: Lock = field(default_factory=Lock)
    _closed: bool = False

    def look(self) -> Look | None:
        """None when there is nothing left to look at. Blocks, for less than a millisecond."""
        with self._lock:
            reading = None if self._closed else self.counters.read()
            if reading is None:
                return None
            network = self.network.read() if self.network is not None else None
            return Look(time.time(), time.monotonic(), reading, network)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self.counters.close()
                if self.network is not None:
                    self.network.close()


def open_probe(hierarchy: Hierarchy, own_path: str, pid: int) -> Probe | None:
    """None when there is neither a group of the run's own nor such a process. Blocks. OSError.

    A process outside the run's group is a stranger that has been given an old process id.
    """
    own = hierarchy.named(own_path)
    container = hierarchy.of_process(pid) if pid else {}
    if own and not _lies_within(container, own):
        container, pid = {}, 0
    if not own and not container:
        return None
    proc = hierarchy.proc
    counters: Counters
    if hierarchy.version == 1:
        counters = CountersV1(own=own or container, container=container, proc=proc, pid=pid)
    else:
        counters = CountersV2(own=own or container, container=container)
    network = NetworkCounters(proc, pid) if pid else None
    return Probe(counters, network, _began_at(pid) if pid else None)


def _lies_within(container: Group, own: Group) -> bool:
    shared = container.keys() & own.keys()
    return any(own[key] in container[key].parents for key in shared)


def _began_at(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


class Watched:
    """What has been seen of one run. It belongs to the event loop; only its probe blocks.

    `descriptor` is the pidfd of the container's first process, -1 where there is none.
    """

    def __init__(self, probe: Probe | None, *, width_seconds: float, descriptor: int = -1) -> None:
        self.probe = probe
        self.descriptor = descriptor
        self.series = Series(width_seconds=width_seconds)
        self.summary: UsageSummary | None = None
        self._last: UsageSample | None = None
        self._last_monotonic = 0.0
        self._ring: deque[UsageSample] = deque(maxlen=_RING)
        self._shortest_interval = width_seconds / 2
        self._ended_at: float | None = None
        self._kills_known = False
        self._cores_peak = 0.0
        self._memory_peak = 0
        self._memory_sum = 0
        self._samples = 0

    @property
    def latest(self) -> UsageSample | None:
        return self._ring[-1] if self._ring else None

    def samples(self, since: float) -> Sequence[UsageSample]:
        """Those after `since`: the last 600 each, earlier ones as means."""
        recent = list(self._ring)
        if self._samples > len(recent):
            begin = recent[0].time
            recent = [s for s in self.series.samples() if s.time < begin] + recent
        return [sample for sample in recent if sample.time > since]

    def add(self, look: Look) -> None:
        sample = _sample(look, self._last, self._cores(look))
        self._last, self._last_monotonic = sample, look.monotonic
        self._memory_peak = max(self._memory_peak, sample.memory_bytes)
        self._memory_sum += sample.memory_bytes
        self._samples += 1
        self._ring.append(sample)
        self.series.add(sample)

    def note_end(self, look: Look) -> None:
        """The counters count; what memory a dead container uses does not."""
        if self._ended_at is None:
            self._ended_at = look.time
        self._kills_known = self._kills_known or look.reading.oom_kills is not None
        self._last = _sample(look, self._last, 0.0)

    def summarize(self) -> UsageSummary | None:
        """None where nothing was ever seen. That nothing was killed for want of memory is only
        said when it was looked at after the end.
        """
        last = self._last
        if last is None:
            return None
        seconds = self._seconds()
        average = last.cpu_seconds / seconds if seconds > 0 else 0.0
        peak = last.memory_peak_bytes or self._memory_peak
        self.summary = UsageSummary(
            samples=self._samples,
            seconds=seconds,
            cpu_seconds=last.cpu_seconds,
            cpu_cores_average=average,
            cpu_cores_peak=max(self._cores_peak, average),
            memory_peak_bytes=peak,
            memory_average_bytes=round(self._memory_sum / self._samples) if self._samples else peak,
            read_bytes=last.read_bytes,
            written_bytes=last.written_bytes,
            network_received_bytes=last.network_received_bytes,
            network_sent_bytes=last.network_sent_bytes,
            oom_kills=last.oom_kills if self._kills_known or last.oom_kills else None,
        )
        return self.summary

    def close(self) -> None:
        """Blocks while a look is under way."""
        if self.probe is not None:
            self.probe.close()

    def _cores(self, look: Look) -> float:
        """Over the time since the last look; too short a time tells nothing."""
        if self._last is None:
            return 0.0
        seconds = look.monotonic - self._last_monotonic
        if seconds < self._shortest_interval:
            return self._last.cpu_cores
        cores = max(0.0, look.reading.cpu_seconds - self._last.cpu_seconds) / seconds
        self._cores_peak = max(self._cores_peak, cores)
        return cores

    def _seconds(self) -> float:
        began = self.probe.process_began_at if self.probe is not None else None
        ended = self._ended_at
        if ended is None and self._last is not None:
            ended = self._last.time
        return 0.0 if began is None or ended is None else max(0.0, ended - began)


def _sample(look: Look, before: UsageSample | None, cpu_cores: float) -> UsageSample:
    """Counters never go back: one that is gone with the container keeps its last value."""
    now = look.reading
    received, sent = look.network if look.network is not None else (None, None)
    sample = UsageSample(
        time=look.time,
        cpu_seconds=now.cpu_seconds,
        cpu_user_seconds=now.cpu_user_seconds,
        cpu_system_seconds=now.cpu_system_seconds,
        cpu_throttled_seconds=now.cpu_throttled_seconds,
        cpu_cores=cpu_cores,
        memory_bytes=now.memory_bytes,
        memory_cache_bytes=now.memory_cache_bytes,
        memory_limit_bytes=now.memory_limit_bytes,
        memory_peak_bytes=now.memory_peak_bytes,
        oom_kills=now.oom_kills,
        read_bytes=now.read_bytes,
        written_bytes=now.written_bytes,
        network_received_bytes=received,
        network_sent_bytes=sent,
        pids=now.pids,
    )
    if before is None:
        return sample
    return replace(
        sample,
        cpu_throttled_seconds=_most(before.cpu_throttled_seconds, sample.cpu_throttled_seconds),
        memory_limit_bytes=sample.memory_limit_bytes or before.memory_limit_bytes,
        memory_peak_bytes=_most(before.memory_peak_bytes, sample.memory_peak_bytes),
        oom_kills=_most(before.oom_kills, sample.oom_kills),
        read_bytes=_most(before.read_bytes, sample.read_bytes),
        written_bytes=_most(before.written_bytes, sample.written_bytes),
        network_received_bytes=_most(before.network_received_bytes, received),
        network_sent_bytes=_most(before.network_sent_bytes, sent),
    )


def _most(before: N | None, now: N | None) -> N | None:
    if before is None or now is None:
        return now if before is None else before
    return max(before, now)

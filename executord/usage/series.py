"""A run's samples over its whole life, in bounded space, and as JSON to be kept with the run.

Samples fall into buckets of equal width; when there are too many, neighbours are merged and the
width doubles. Each bucket keeps mean, least and most of what goes up and down, and the last value
of what only grows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from executord.core.run import UsageSummary
from executord.ports import UsageSample

_VERSION = 1
_MOST_BUCKETS = 120
_NEARLY = 0.75  # of a width: samples are never taken at quite equal distances

_KEPT = (
    "cpu_seconds",
    "memory_cache_bytes",
    "memory_peak_bytes",
    "read_bytes",
    "written_bytes",
    "network_received_bytes",
    "network_sent_bytes",
    "pids",
)
_COLUMNS = (
    "time",
    "samples",
    "cpu_cores",
    "cpu_cores_least",
    "cpu_cores_most",
    "memory_bytes",
    "memory_bytes_least",
    "memory_bytes_most",
    *_KEPT,
)


@dataclass(slots=True)
class Bucket:
    """`last` is the newest sample in it."""

    began: float
    last: UsageSample
    samples: int
    cores_sum: float
    cores_least: float
    cores_most: float
    memory_sum: float
    memory_least: int
    memory_most: int

    @classmethod
    def of(cls, sample: UsageSample) -> "Bucket":
        cores, memory = sample.cpu_cores, sample.memory_bytes
        return cls(sample.time, sample, 1, cores, cores, cores, memory, memory, memory)

    def add(self, later: "Bucket") -> None:
        self.last = later.last
        self.samples += later.samples
        self.cores_sum += later.cores_sum
        self.cores_least = min(self.cores_least, later.cores_least)
        self.cores_most = max(self.cores_most, later.cores_most)
        self.memory_sum += later.memory_sum
        self.memory_least = min(self.memory_least, later.memory_least)
        self.memory_most = max(self.memory_most, later.memory_most)

    def sample(self) -> UsageSample:
        """The bucket as one sample: the last one's counters, means of the rest."""
        return replace(
            self.last,
            cpu_cores=self.cores_sum / self.samples,
            memory_bytes=round(self.memory_sum / self.samples),
        )


class Series:
    """`width_seconds` is the first bucket width; it doubles as the run goes on."""

    def __init__(self, *, width_seconds: float) -> None:
        self.width_seconds = width_seconds
        self.buckets: list[Bucket] = []

    def add(self, sample: UsageSample) -> None:
        newest = self.buckets[-1] if self.buckets else None
        if newest is not None and sample.time - newest.began < _NEARLY * self.width_seconds:
            newest.add(Bucket.of(sample))
            return
        self.buckets.append(Bucket.of(sample))
        if len(self.buckets) > _MOST_BUCKETS:
            self._widen()

    def samples(self) -> list[UsageSample]:
        return [bucket.sample() for bucket in self.buckets]

    def _widen(self) -> None:
        merged: list[Bucket] = []
        for at in range(0, len(self.buckets), 2):
            bucket = self.buckets[at]
            for later in self.buckets[at + 1 : at + 2]:
                bucket.add(later)
            merged.append(bucket)
        self.buckets = merged
        self.width_seconds *= 2


def to_json(series: Series, summary: UsageSummary | None) -> Mapping[str, object]:
    return {
        "version": _VERSION,
        "width_seconds": series.width_seconds,
        "columns": list(_COLUMNS),
        "rows": [_row(bucket) for bucket in series.buckets],
        "summary": None if summary is None else _plain(summary),
    }


def samples_from_json(value: object) -> Sequence[UsageSample]:
    """One sample a bucket; none from what this version does not understand."""
    if not isinstance(value, Mapping) or value.get("version") != _VERSION:
        return ()
    columns, rows = value.get("columns"), value.get("rows")
    if not isinstance(columns, Sequence) or not isinstance(rows, Sequence):
        return ()
    known = {each.name for each in fields(UsageSample)}
    found: list[UsageSample] = []
    for row in rows:
        named: dict[str, Any] = {
            name: cell for name, cell in zip(columns, row, strict=False) if name in known
        }
        if named.get("time") is not None and named.get("cpu_seconds") is not None:
            found.append(UsageSample(**named))
    return tuple(found)


def summary_from_json(value: object) -> UsageSummary | None:
    summary = value.get("summary") if isinstance(value, Mapping) else None
    if not isinstance(summary, Mapping):
        return None
    known = {each.name for each in fields(UsageSummary)}
    named: dict[str, Any] = {key: cell for key, cell in summary.items() if key in known}
    return UsageSummary(**named)


def _row(bucket: Bucket) -> list[float | int | None]:
    sample = bucket.sample()
    return [
        round(sample.time, 3),
        bucket.samples,
        round(sample.cpu_cores, 4),
        round(bucket.cores_least, 4),
        round(bucket.cores_most, 4),
        sample.memory_bytes,
        bucket.memory_least,
        bucket.memory_most,
        *(_short(getattr(sample, name)) for name in _KEPT),
    ]


def _short(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, float) else value


def _plain(summary: UsageSummary) -> Mapping[str, object]:
    return {each.name: getattr(summary, each.name) for each in fields(summary)}

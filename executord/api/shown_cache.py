"""From what the file cache tells of itself to what the socket answers."""

from dataclasses import asdict

from executord.api import answers_cache as c
from executord.api.answers import Time
from executord.core import cache_trace
from executord.core.cache_trace import Use
from executord.core.cloudevents import rfc3339
from executord.ports import AskedOf, CacheReport, WorkspaceUse


def cache_report(report: CacheReport, *, with_names: bool) -> c.CacheReportAnswer:
    """`with_names`: of runs and trees."""
    return c.CacheReportAnswer(
        used_bytes=report.used_bytes,
        used_inodes=report.used_inodes,
        coming_bytes=report.coming_bytes,
        saved_bytes=report.saved_bytes,
        limits=report.limits,
        kinds=dict(report.kinds.items()),
        since_start=_asked(report.since_start),
        in_all=_asked(report.in_all),
        fetched=report.fetched,
        counted=c.CountedAnswer(
            at=_time(report.counted.at),
            corrections=report.counted.corrections,
            corrected_bytes=report.counted.corrected_bytes,
        ),
        evictions=list(report.evictions),
        recent_evictions=[
            c.EvictionAnswer(**{**asdict(each), "time": rfc3339(each.time)})
            for each in report.recent_evictions
            if with_names
        ],
        leases=[_workspace(each) for each in report.leases if with_names],
        kept=[_workspace(each) for each in report.kept if with_names],
        pins={tree: list(held) for tree, held in report.pins.items() if with_names},
    )


def trace_use(use: Use) -> c.TraceUseAnswer:
    return c.TraceUseAnswer(**cache_trace.as_object(use))


def _asked(asked: AskedOf) -> c.AskedOfAnswer:
    return c.AskedOfAnswer(
        since=_time(asked.since),
        hit_runs=asked.hit_runs,
        missed_runs=asked.missed_runs,
        hit_files=asked.hit_files,
        missed_files=asked.missed_files,
        hit_bytes=asked.hit_bytes,
        missed_bytes=asked.missed_bytes,
        run_hit_ratio=_ratio(asked.hit_runs, asked.missed_runs),
        file_hit_ratio=_ratio(asked.hit_files, asked.missed_files),
        byte_hit_ratio=_ratio(asked.hit_bytes, asked.missed_bytes),
    )


def _ratio(hit: int, missed: int) -> float | None:
    return hit / (hit + missed) if hit + missed else None


def _workspace(use: WorkspaceUse) -> c.WorkspaceUseAnswer:
    return c.WorkspaceUseAnswer(**{**asdict(use), "since": rfc3339(use.since)})


def _time(seconds: float) -> Time | None:
    return rfc3339(seconds) if seconds else None

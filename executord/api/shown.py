"""From the daemon's values to the answers of `executord.api.answers`."""

import base64
import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from msgspec import UNSET

from executord.api import answers as a
from executord.api import answers_node as n
from executord.api.answers_cache import CacheReportAnswer
from executord.core.cloudevents import rfc3339
from executord.core.run import (
    Assignment,
    Evidence,
    Result,
    Run,
    StageCost,
    StopOrder,
    Sync,
    Transition,
    UsageSummary,
)
from executord.core.states import State
from executord.ports import (
    CacheEntry,
    ConsoleRecord,
    FileChange,
    FilesStats,
    HostUsage,
    ImageEntry,
    Progress,
    PruneReport,
    UsageSample,
)
from executord.runs.node import NodeState
from executord.runs.prefetch import PrefetchJob

_SIGNAL_BASE = 128
_MOST_VICTIMS = 1000


def _time(unix_seconds: float | None) -> str | None:
    return None if unix_seconds is None else rfc3339(unix_seconds)


def encode(answer: Any) -> bytes:
    """As JSON. One name that is not UTF-8 must not make a whole list unreadable."""
    try:
        return msgspec.json.encode(answer)
    except (UnicodeEncodeError, OverflowError):
        plain = json.dumps(msgspec.to_builtins(answer, enc_hook=_unpacked), ensure_ascii=False)
        return plain.encode("utf-8", "replace")


def _unpacked(value: object) -> object:
    if isinstance(value, msgspec.Raw):
        return json.loads(bytes(value))
    raise TypeError(f"{type(value).__name__} is no JSON")


# -- runs ------------------------------------------------------------------------------------------


def run(
    shown: Run,
    *,
    usage: UsageSummary | None,
    progress: Mapping[str, Progress],
    queue_position: int | None,
    timeline: Sequence[Transition] | None = None,
) -> a.RunAnswer:
    assignment = shown.assignment
    explanation = shown.explanation()
    return a.RunAnswer(
        id=shown.id,
        project=assignment.project,
        number=assignment.number,
        started_by=assignment.started_by,
        owner_uid=assignment.owner_uid,
        tier=assignment.tier,
        state=shown.state,
        state_since=rfc3339(shown.state_since),
        accepted_at=rfc3339(shown.accepted_at),
        ended_at=_time(shown.ended_at),
        attempt=shown.attempt,
        assignment=_assignment(assignment),
        reason=shown.reason,
        explanation=(
            a.ExplanationAnswer(
                reason=explanation.reason,
                side=explanation.side,
                sentence=explanation.sentence,
                detail=explanation.detail,
                advice=explanation.advice,
            )
            if explanation
            else None
        ),
        evidence=_evidence(shown),
        exit_code=shown.evidence.exit_code if shown.evidence else None,
        stop=_stop(shown.stop) if shown.stop else None,
        result=result(shown.result) if shown.result else None,
        costs=[_cost(cost) for cost in shown.costs],
        usage=usage,
        progress={stage: _progress(seen) for stage, seen in progress.items()},
        queue_position=queue_position,
        image=(
            a.ImageAnswer(id=shown.image.id, reference=shown.image.reference, key=shown.image.key)
            if shown.image
            else None
        ),
        labels=dict(assignment.labels),
        syncs=[_synced(sync) for sync in shown.syncs],
        sync_count=shown.sync_count,
        keeps_workspace=shown.keeps_workspace,
        timeline=UNSET if timeline is None else [_transition(seen) for seen in timeline],
    )


def _assignment(asked: Assignment) -> a.AssignmentAnswer:
    environment = asked.environment
    return a.AssignmentAnswer(
        id=asked.id,
        project=asked.project,
        number=asked.number,
        started_by=asked.started_by,
        tier=asked.tier,
        files=a.FilesAnswer(revision=asked.revision) if asked.revision else None,
        environment=a.EnvironmentAnswer(
            image=environment.image,
            dockerfile=environment.dockerfile,
            build_args=dict(environment.build_args),
            pull=environment.pull,
        ),
        command=list(asked.command),
        env=dict(asked.env),
        secret_names=list(asked.secret_names),
        mounts=[
            a.MountAnswer(
                source=mount.source or None,
                revision=mount.revision or None,
                target=mount.target,
                read_only=mount.read_only,
            )
            for mount in asked.mounts
        ],
        limits=a.LimitsAnswer(run_seconds=asked.run_seconds),
        results=a.ResultsAnswer(keep_on=sorted(asked.keep_on)),
        labels=dict(asked.labels),
    )


def _evidence(shown: Run) -> dict[str, a.Scalar] | None:
    """Flat: what the fault was seen by, and what is known of the container's end."""
    if shown.evidence is None and shown.fault is None:
        return None
    seen: dict[str, a.Scalar] = dict(shown.fault.evidence) if shown.fault else {}
    if shown.evidence is not None:
        seen.update(_end_of_container(shown.evidence))
    return seen


def _end_of_container(evidence: Evidence) -> dict[str, a.Scalar]:
    seen: dict[str, a.Scalar] = asdict(evidence)
    seen["started_at"] = _time(evidence.started_at)
    seen["finished_at"] = _time(evidence.finished_at)
    code = evidence.exit_code
    if code is not None and _SIGNAL_BASE < code < _SIGNAL_BASE + signal.NSIG:
        try:
            seen["signal"] = signal.Signals(code - _SIGNAL_BASE).name
        except ValueError:
            seen["signal"] = str(code - _SIGNAL_BASE)
    return seen


def _stop(order: StopOrder) -> a.StopAnswer:
    return a.StopAnswer(
        results=order.results, grace_seconds=order.grace_seconds, reason=order.reason, by=order.by
    )


def _synced(sync: Sync) -> a.SyncedAnswer:
    return a.SyncedAnswer(
        at=rfc3339(sync.at),
        paused_seconds=sync.paused_seconds,
        way=sync.way,
        result=result(sync.result),
    )


def result(left: Result) -> a.ResultAnswer:
    return a.ResultAnswer(
        revision=left.revision or None,
        head=left.head,
        added=left.added,
        changed=left.changed,
        deleted=left.deleted,
        bytes_sent=left.bytes_sent,
        skipped=list(left.skipped),
        diagnostics=_foreign_json(left.diagnostics),
        head_revision=left.head_revision or None,
        conflicts=list(left.conflicts),
        conflict_count=left.conflict_count,
    )


def _foreign_json(value: Mapping[str, object] | None) -> msgspec.Raw | None:
    """A user's JSON may hold numbers and texts that are none of ours; it must not harm the rest."""
    if value is None:
        return None
    try:
        return msgspec.Raw(json.dumps(value, allow_nan=False).encode("ascii"))
    except (ValueError, TypeError, RecursionError):
        return None


def _cost(cost: StageCost) -> a.CostAnswer:
    return a.CostAnswer(
        stage=cost.stage,
        seconds=cost.seconds,
        files_from_cache=cost.files_from_cache,
        bytes_from_cache=cost.bytes_from_cache,
        files_fetched=cost.files_fetched,
        bytes_fetched=cost.bytes_fetched,
        files_sent=cost.files_sent,
        bytes_sent=cost.bytes_sent,
        way=cost.way,
        why=cost.why,
    )


def _progress(seen: Progress) -> a.ProgressAnswer:
    return a.ProgressAnswer(
        what=seen.what,
        files_done=seen.files_done,
        files_total=seen.files_total,
        bytes_done=seen.bytes_done,
        bytes_total=seen.bytes_total,
        step=seen.step,
        steps=seen.steps,
        detail=seen.detail,
        bytes_per_second=seen.bytes_per_second,
        seconds_left=seen.seconds_left,
    )


def _transition(seen: Transition) -> a.TransitionAnswer:
    return a.TransitionAnswer(
        seq=seen.seq,
        number=seen.number,
        time=rfc3339(seen.time),
        from_state=seen.from_state,
        to_state=State(seen.to_state),
        reason=seen.reason,
        detail=seen.detail,
        costs=[_cost(cost) for cost in seen.costs],
    )


def log_record(record: ConsoleRecord, *, with_time: bool) -> a.LogRecord:
    shown = a.LogRecord(offset=record.offset, stream=record.stream, lost_bytes=record.lost_bytes)
    if with_time:
        shown.time = rfc3339(record.time)
    try:
        shown.data = record.data.decode()
    except UnicodeDecodeError:
        shown.data_base64 = base64.b64encode(record.data).decode()
    return shown


def change(seen: FileChange) -> a.ChangeAnswer:
    shown = a.ChangeAnswer(kind=seen.kind, size_bytes=seen.size_bytes)
    name = seen.path.encode("utf-8", "surrogateescape")
    try:
        shown.path = name.decode()
    except UnicodeDecodeError:
        shown.path_base64 = base64.b64encode(name).decode()
    return shown


def sample(seen: UsageSample) -> a.SampleAnswer:
    return a.SampleAnswer(
        time=rfc3339(seen.time),
        cpu_seconds=seen.cpu_seconds,
        cpu_user_seconds=seen.cpu_user_seconds,
        cpu_system_seconds=seen.cpu_system_seconds,
        cpu_throttled_seconds=seen.cpu_throttled_seconds,
        cpu_cores=seen.cpu_cores,
        memory_bytes=seen.memory_bytes,
        memory_cache_bytes=seen.memory_cache_bytes,
        memory_limit_bytes=seen.memory_limit_bytes,
        memory_peak_bytes=seen.memory_peak_bytes,
        oom_kills=seen.oom_kills,
        read_bytes=seen.read_bytes,
        written_bytes=seen.written_bytes,
        network_received_bytes=seen.network_received_bytes,
        network_sent_bytes=seen.network_sent_bytes,
        pids=seen.pids,
    )


# -- the node and its caches -----------------------------------------------------------------------


def cache_entry(entry: CacheEntry) -> n.CacheEntryAnswer:
    return n.CacheEntryAnswer(
        digest=entry.digest,
        kind=entry.kind,
        size_bytes=entry.size_bytes,
        own_bytes=entry.own_bytes,
        files=entry.files,
        last_used=rfc3339(entry.last_used),
        pinned_by=list(entry.pinned_by),
        own_inodes=entry.own_inodes,
        base=entry.base,
        depth=entry.depth,
        uses=round(entry.uses, 3),
        cost_seconds=entry.cost_seconds,
        state=entry.state,
        why=entry.why,
    )


def image_entry(entry: ImageEntry) -> n.ImageEntryAnswer:
    return n.ImageEntryAnswer(
        key=entry.key,
        reference=entry.reference,
        image_id=entry.image_id,
        size_bytes=entry.size_bytes,
        own_bytes=entry.own_bytes,
        last_used=rfc3339(entry.last_used),
        used_by=list(entry.used_by),
        made_by=entry.made_by,
        made_seconds=entry.made_seconds,
    )


def prefetch(job: PrefetchJob) -> n.PrefetchAnswer:
    return n.PrefetchAnswer(
        id=job.id,
        state=job.state,
        asked_at=rfc3339(job.asked_at),
        ended_at=_time(job.ended_at),
        held_until=_time(job.held_until),
        items=[
            n.PrefetchItemAnswer(
                kind=item.kind,
                name=item.name,
                state=item.state,
                way=item.way,
                detail=item.detail,
                reason=item.reason,
                progress=_progress(item.progress) if item.progress else None,
            )
            for item in job.items
        ],
    )


def prune_report(report: PruneReport) -> n.PruneAnswer:
    return n.PruneAnswer(
        dry_run=report.dry_run,
        freed_bytes=report.freed_bytes,
        freed_inodes=report.freed_inodes,
        coming_bytes=report.coming_bytes,
        victims=[cache_entry(entry) for entry in report.victims[:_MOST_VICTIMS]],
        victims_total=len(report.victims),
    )


def files_stats(stats: FilesStats, report: CacheReportAnswer | None) -> n.FileCacheAnswer:
    return n.FileCacheAnswer(
        blobs=stats.blobs,
        blob_bytes=stats.blob_bytes,
        snapshots=stats.snapshots,
        workspaces=stats.workspaces,
        hits_files=stats.hits_files,
        hits_bytes=stats.hits_bytes,
        misses_files=stats.misses_files,
        misses_bytes=stats.misses_bytes,
        evicted_bytes=stats.evicted_bytes,
        max_bytes=stats.max_bytes,
        disk_free_bytes=stats.disk_free_bytes,
        damaged=stats.damaged,
        mended=stats.mended,
        quarantine_bytes=stats.quarantine_bytes,
        report=report,
    )


def host(seen: HostUsage) -> n.HostAnswer:
    return n.HostAnswer(**{**asdict(seen), "time": rfc3339(seen.time)})


def node(state: NodeState) -> n.NodeAnswer:
    return n.NodeAnswer(
        name=state.name,
        instance=state.instance,
        version=state.version,
        started_at=rfc3339(state.started_at),
        accepting=state.accepting,
        why_not=state.why_not,
        queued=state.queued,
        running=state.running,
        max_queue=state.max_queue,
        cpus=state.cpus,
        memory_bytes=state.memory_bytes,
        gpus=state.gpus,
        promised_cpus=state.promised_cpus,
        promised_memory_bytes=state.promised_memory_bytes,
        promised_gpus=state.promised_gpus,
        tiers=list(state.tiers),
        store_url=state.store_url,
        working_dir=state.working_dir,
        engine=state.engine,
        workspaces=state.workspaces,
    )

"""The parts behind the API, in memory: they behave, and can be told to refuse or to be slow."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from executord.api.services import Services
from executord.core.cache_trace import TracePart, Use
from executord.core.reasons import Fault, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import (
    Assignment,
    Environment,
    Evidence,
    Image,
    Result,
    Run,
    Stage,
    StageCost,
    StopOrder,
    Transition,
    UsageSummary,
)
from executord.core.states import State
from executord.ports import (
    AskedOf,
    CacheEntry,
    CacheLimits,
    CacheReport,
    ConsoleRecord,
    Counted,
    DamagedObject,
    EngineFacts,
    Eviction,
    EvictionSum,
    FetchRates,
    FileChange,
    FilesStats,
    HostUsage,
    ImageEntry,
    KindUse,
    ModeVerdict,
    Progress,
    PruneReport,
    RunPage,
    Stream,
    UsageSample,
    VerifyReport,
    WorkspaceModes,
    WorkspaceUse,
)
from executord.runs.drafts import AssignmentDraft, Submitted
from executord.runs.node import NodeState, TierState
from executord.runs.prefetch import PrefetchItem, PrefetchJob, PrefetchWanted
from executord.runs.sync import SyncReport

NOW = 1_795_000_000.0
SUMMARY = UsageSummary(
    samples=2,
    seconds=2.0,
    cpu_seconds=1.5,
    cpu_cores_average=0.75,
    cpu_cores_peak=1.0,
    memory_peak_bytes=2 << 20,
    memory_average_bytes=1 << 20,
)


def a_sample(time: float) -> UsageSample:
    return UsageSample(time=time, cpu_seconds=time - NOW, cpu_cores=0.5, memory_bytes=1 << 20)


class FakeManager:
    """`error` is raised by the next call of any method that may refuse; `gate` holds up submits."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.submitting = asyncio.Event()
        self.submitted = asyncio.Event()
        self.kept: dict[str, tuple[Run, AssignmentDraft, Mapping[str, str]]] = {}
        self.transitions: list[Transition] = []
        self.samples: dict[str, list[UsageSample]] = {}
        self.changes: dict[str, list[FileChange]] = {}
        self.orders: list[StopOrder] = []
        self.syncs: list[tuple[str, bool]] = []
        self.why_not_ready = ""
        self._grew = asyncio.Condition()

    def _may_fail(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    # -- what tests do -----------------------------------------------------------------------------

    def add(self, run_id: str = "r-1", *, owner_uid: int = 0, **fields: object) -> Run:
        draft = AssignmentDraft(
            command=("true",), environment=Environment(image="python:3.11"), id=run_id
        )
        run = replace(_run_of(draft, owner_uid), **fields)  # type: ignore[arg-type]
        self.kept[run_id] = (run, draft, {})
        self._report(run, None, State.QUEUED)
        return run

    async def move(self, run_id: str, state: State, **fields: object) -> Run:
        old, draft, secrets = self.kept[run_id]
        run = replace(old, state=state, transitions=old.transitions + 1, **fields)  # type: ignore[arg-type]
        self.kept[run_id] = (run, draft, secrets)
        self._report(run, old.state, state)
        async with self._grew:
            self._grew.notify_all()
        return run

    def _report(self, run: Run, old: State | None, new: State) -> None:
        self.transitions.append(
            Transition(
                run_id=run.id,
                number=run.transitions,
                seq=len(self.transitions) + 1,
                time=NOW,
                from_state=old,
                to_state=new,
                reason=run.reason,
                costs=(StageCost(stage=Stage.QUEUE, seconds=0.25),),
            )
        )

    # -- what the API asks -----------------------------------------------------------------------

    async def submit(
        self, draft: AssignmentDraft, secrets: Mapping[str, str], owner_uid: int
    ) -> Submitted:
        self._may_fail()
        if self.gate is not None:
            self.submitting.set()
            await self.gate.wait()
        if draft.id in self.kept:
            run, same, hidden = self.kept[draft.id]
            if (same, hidden) == (draft, dict(secrets)):
                return Submitted(run=run, created=False)
            raise RefusedError(Refusal.ID_CONFLICT, f"{draft.id} is taken.", pointer="/id")
        run = _run_of(replace(draft, id=draft.id or f"r-{len(self.kept) + 1}"), owner_uid)
        run = replace(run, assignment=replace(run.assignment, secret_names=tuple(sorted(secrets))))
        self.kept[run.id] = (run, draft, dict(secrets))
        self._report(run, None, State.QUEUED)
        self.submitted.set()
        return Submitted(run=run, created=True)

    async def stop(self, run_id: str, order: StopOrder) -> Run:
        self._may_fail()
        run = await self.run(run_id)
        if run.is_over:
            raise RefusedError(Refusal.RUN_OVER, f"{run_id} is {run.state}.")
        if run.stop is not None:
            return run
        self.orders.append(order)
        return await self.move(run_id, State.STOP_REQUESTED, stop=order)

    async def sync(self, run_id: str, *, discard: bool = False) -> SyncReport:
        self._may_fail()
        run = await self.run(run_id)
        if run.state is not State.RUNNING and not run.keeps_workspace:
            raise RefusedError(Refusal.NOTHING_TO_SYNC, f"{run_id} is {run.state}.")
        self.syncs.append((run_id, discard))
        result = Result(revision="sha256:" + "b" * 64, head="moved", added=2)
        return SyncReport(
            run_id=run_id,
            at=NOW,
            result=Result(head="not_kept") if discard else result,
            mid_run=not run.is_over,
            paused_seconds=0.0 if run.is_over else 0.012,
            way="" if run.is_over else "reflink",
        )

    async def run(self, run_id: str) -> Run:
        self._may_fail()
        if run_id not in self.kept:
            raise RefusedError(Refusal.UNKNOWN_RUN, f"There is no run {run_id}.")
        return self.kept[run_id][0]

    async def runs(
        self, *, state: str | None, project: str | None, limit: int, cursor: str | None
    ) -> RunPage:
        self._may_fail()
        begin = int(cursor) if cursor else 0
        found = [
            run
            for run, _, _ in reversed(self.kept.values())
            if state in (None, run.state) and project in (None, run.assignment.project)
        ]
        end = begin + limit
        return RunPage(
            runs=tuple(found[begin:end]), next_cursor=str(end) if end < len(found) else None
        )

    def live_runs(self) -> Sequence[Run]:
        return [run for run, _, _ in self.kept.values() if not run.is_over]

    async def owner_of(self, run_id: str) -> int | None:
        return (await self.run(run_id)).assignment.owner_uid

    async def transitions_of(self, run_id: str) -> Sequence[Transition]:
        return [seen for seen in self.transitions if seen.run_id == run_id]

    async def transitions_after(self, seq: int, limit: int) -> Sequence[Transition]:
        self._may_fail()
        return self.transitions[seq : seq + limit]

    async def wait_for_events(self, after_seq: int, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds), self._grew:
                await self._grew.wait_for(lambda: len(self.transitions) > after_seq)
        except TimeoutError:
            return

    def progress_of(self, run_id: str) -> Mapping[str, Progress]:
        if self.kept[run_id][0].is_over:
            return {}
        return {"prepare": Progress(what="fetching", files_done=1, files_total=3)}

    async def usage_of(self, run_id: str) -> UsageSummary | None:
        return SUMMARY if self.kept[run_id][0].is_over else None

    async def usage_samples(self, run_id: str, since: float) -> Sequence[UsageSample]:
        return [sample for sample in self.samples.get(run_id, []) if sample.time > since]

    async def changes_of(self, run_id: str) -> Sequence[FileChange]:
        self._may_fail()
        return self.changes.get(run_id, [])

    def queue_position(self, run_id: str) -> int | None:
        return 0 if self.kept[run_id][0].state is State.QUEUED else None

    def node(self) -> NodeState:
        tier = TierState(
            name="small",
            cpus=1.0,
            memory_bytes=1 << 30,
            gpus=0,
            max_runs=4,
            promised_runs=1,
            queued_runs=0,
        )
        return NodeState(
            name="node-1",
            instance="i-1",
            version="0.1.0",
            started_at=NOW,
            accepting=True,
            why_not="",
            queued=0,
            running=1,
            max_queue=100,
            cpus=2.0,
            memory_bytes=4 << 30,
            gpus=0,
            promised_cpus=1.0,
            promised_memory_bytes=1 << 30,
            promised_gpus=0,
            tiers=(tier,),
            store_url="s3://team/store",
            working_dir="/mnt",
            engine=EngineFacts(
                version="20.10.24",
                api_version="1.41",
                storage_driver="overlay2",
                cgroup_driver="cgroupfs",
                cgroup_version=1,
                live_restore=True,
                architecture="x86_64",
                data_root="/var/lib/docker",
            ),
            workspaces=WorkspaceModes(
                chosen="reflink",
                forced=False,
                verdicts=(
                    ModeVerdict(mode="overlay", works=False, why="no extended attributes"),
                    ModeVerdict(mode="reflink", works=True, why=""),
                ),
            ),
        )

    def ready(self) -> tuple[bool, str]:
        return not self.why_not_ready, self.why_not_ready


def _run_of(draft: AssignmentDraft, owner_uid: int) -> Run:
    return Run(
        assignment=Assignment(
            id=draft.id,
            project=draft.project or "alice/churn",
            command=draft.command,
            environment=draft.environment,
            tier=draft.tier or "small",
            number=draft.number,
            started_by=draft.started_by,
            revision=draft.revision,
            env=draft.env,
            mounts=draft.mounts,
            run_seconds=draft.run_seconds,
            keep_on=draft.keep_on,
            labels=draft.labels,
            owner_uid=owner_uid,
        ),
        state=State.QUEUED,
        accepted_at=NOW,
        state_since=NOW,
        transitions=1,
    )


def ended(run: Run) -> Mapping[str, object]:
    """What a run that failed by its own code has more than one that lives."""
    return {
        "reason": Reason.EXIT_CODE,
        "fault": Fault(Reason.EXIT_CODE, "Exit code 3.", {"exit_code": 3, "started_at": NOW}),
        "evidence": Evidence(exit_code=3, started_at=NOW, finished_at=NOW + 2),
        "result": Result(
            revision="sha256:" + "a" * 64,
            head="moved",
            added=1,
            bytes_sent=10,
            skipped=("pipe: a FIFO",),
            diagnostics={"accuracy": 0.9},
        ),
        "image": Image(id="sha256:1", reference="python:3.11"),
        "costs": (StageCost(stage=Stage.PREPARE, seconds=0.01, way="snapshot"),),
        "ended_at": run.accepted_at + 3,
    }


class FakeConsoles:
    """`open_readers` counts generators that are neither exhausted nor closed."""

    def __init__(self) -> None:
        self.records: dict[str, list[ConsoleRecord]] = {}
        self.sealed: set[str] = set()
        self.open_readers = 0
        self.broken: Exception | None = None
        self._grew = asyncio.Condition()

    async def write(self, run_id: str, data: bytes, stream: Stream = "stdout") -> None:
        held = self.records.setdefault(run_id, [])
        offset = held[-1].end if held else 0
        held.append(ConsoleRecord(offset=offset, time=NOW, stream=stream, data=data))
        await self._tell()

    async def lose(self, run_id: str, lost_bytes: int) -> None:
        held = self.records.setdefault(run_id, [])
        offset = held[-1].end if held else 0
        held.append(
            ConsoleRecord(offset=offset, time=NOW, stream="gap", data=b"", lost_bytes=lost_bytes)
        )
        await self._tell()

    async def seal(self, run_id: str) -> None:
        self.sealed.add(run_id)
        await self._tell()

    async def break_down(self, error: Exception) -> None:
        self.broken = error
        await self._tell()

    async def _tell(self) -> None:
        async with self._grew:
            self._grew.notify_all()

    async def read(
        self, run_id: str, *, since: int, follow: bool, stream: Stream | None
    ) -> AsyncIterator[ConsoleRecord]:
        self.open_readers += 1
        position = 0
        try:
            while True:
                held = self.records.get(run_id, [])
                for record in held[position:]:
                    position += 1
                    if record.end > since and stream in (None, record.stream):
                        yield _cut(record, since)
                if self.broken is not None:
                    raise self.broken
                if not follow or run_id in self.sealed:
                    return
                async with self._grew:
                    await self._grew.wait()
        finally:
            self.open_readers -= 1


def _cut(record: ConsoleRecord, since: int) -> ConsoleRecord:
    if record.offset >= since or record.stream == "gap":
        return record
    return replace(record, offset=since, data=record.data[since - record.offset :])


def _entry(name: str, kind: Literal["snapshot", "blob", "layer"], age: float) -> CacheEntry:
    return CacheEntry(
        digest="sha256:" + name * 64,
        kind=kind,
        size_bytes=10,
        own_bytes=5,
        files=2,
        last_used=NOW + age,
        pinned_by=("r-1",),
    )


A_USE = Use(
    time=NOW,
    tree="sha256:" + "a" * 64,
    way="snapshot",
    files=2,
    bytes=8192,
    own_bytes=4096,
    own_inodes=1,
    own_seconds=0.01,
    seconds_per_file=0.0002,
    seconds_per_byte=5e-9,
    parts=(TracePart(1, 1), TracePart(2, 1)),
)
_ASKED = AskedOf(
    since=NOW,
    hit_runs=1,
    missed_runs=1,
    hit_files=3,
    missed_files=1,
    hit_bytes=30,
    missed_bytes=10,
)
A_REPORT = CacheReport(
    used_bytes=10,
    used_inodes=5,
    coming_bytes=4096,
    saved_bytes=2048,
    limits=CacheLimits(
        max_bytes=1 << 30,
        max_inodes=0,
        low_watermark=0.8,
        high_watermark=0.9,
        min_free_bytes=1 << 20,
        min_free_inodes=0,
        disk_free_bytes=1 << 34,
        disk_free_inodes=1000,
    ),
    kinds={
        "blobs": KindUse(entries=1, bytes=10, inodes=1),
        "kept_workspaces": KindUse(entries=1, bytes=4096, inodes=2),
    },
    since_start=_ASKED,
    in_all=_ASKED,
    fetched=FetchRates(
        files=1, bytes=10, seconds=0.5, seconds_per_file=0.0002, seconds_per_byte=5e-9
    ),
    counted=Counted(at=0.0, corrections=0, corrected_bytes=0),
    evictions=(EvictionSum(trigger="prune", entries=2, bytes=4096, inodes=3),),
    recent_evictions=(
        Eviction(
            time=NOW,
            kind="snapshot",
            digest="sha256:" + "d" * 64,
            trigger="prune",
            why="used once, last 2 days ago",
            freed_bytes=4096,
        ),
    ),
    leases=(
        WorkspaceUse(
            run="r-1", tree="sha256:" + "a" * 64, bytes=1, inodes=1, since=NOW, why="its run"
        ),
    ),
    kept=(
        WorkspaceUse(
            run="r-9", tree="sha256:" + "a" * 64, bytes=4096, inodes=2, since=NOW, why="kept"
        ),
    ),
    pins={"sha256:" + "a" * 64: ("r-1",)},
)


class FakeFiles:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.held = [_entry("a", "snapshot", 1), _entry("b", "blob", 2), _entry("c", "layer", 3)]
        self.bad: list[DamagedObject] = []
        self.stuck: asyncio.Event | None = None
        self.given_up = 0

    async def stats(self) -> FilesStats:
        if self.error is not None:
            raise self.error
        return FilesStats(
            blobs=1,
            blob_bytes=10,
            snapshots=1,
            workspaces=0,
            hits_files=3,
            hits_bytes=30,
            misses_files=1,
            misses_bytes=10,
            evicted_bytes=0,
            max_bytes=1 << 30,
            disk_free_bytes=1 << 34,
            report=A_REPORT,
        )

    async def entries(self) -> Sequence[CacheEntry]:
        return self.held

    async def prune(self, *, dry_run: bool) -> PruneReport:
        victims = tuple(self.held)
        if not dry_run:
            self.held = []
        return PruneReport(victims=victims, freed_bytes=30, dry_run=dry_run)

    async def trace(self) -> Sequence[Use]:
        return [A_USE]

    async def verify(self, *, repair: bool) -> AsyncIterator[Progress | VerifyReport]:
        """`bad` is what it finds; `stuck` keeps it from ending; `given_up` counts closed ones."""
        report: VerifyReport | None = None
        try:
            yield Progress(what="checking the cache", files_done=1, files_total=2)
            if self.stuck is not None:
                await self.stuck.wait()
            found = tuple(replace(each, mended=repair and not each.why_not) for each in self.bad)
            report = VerifyReport(
                snapshots=1,
                blobs=2,
                trees=3,
                revisions=1,
                bytes_read=30,
                seconds=0.5,
                damaged=len(found),
                mended=sum(each.mended for each in found),
                objects=found,
            )
            yield report
        finally:
            self.given_up += report is None


class FakeImages:
    async def entries(self) -> Sequence[ImageEntry]:
        return [
            ImageEntry(
                key="k",
                reference="python:3.11",
                image_id="sha256:1",
                size_bytes=100,
                own_bytes=50,
                last_used=NOW,
                used_by=("r-1",),
                made_by="pulled",
                made_seconds=3.0,
            )
        ]


class FakePrefetching:
    """Whose name begins with `here` is here; the others take for ever."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[PrefetchWanted] = []
        self.held: list[PrefetchJob] = []

    async def prefetch(self, wanted: PrefetchWanted) -> PrefetchJob:
        if self.error is not None:
            raise self.error
        self.asked.append(wanted)
        items = [PrefetchItem(kind="revision", name=digest) for digest in wanted.revisions]
        items += [PrefetchItem(kind="image", name=each.image) for each in wanted.environments]
        here = all(item.name.startswith("here") for item in items)
        job = PrefetchJob(
            id=f"p-{len(self.held)}",
            asked_at=NOW,
            items=tuple(
                replace(item, state="ready", way="local")
                if here
                else replace(item, state="working", progress=Progress(what="fetching files"))
                for item in items
            ),
            ended_at=NOW if here else None,
            held_until=NOW + 60 if here else None,
        )
        self.held.insert(0, job)
        return job

    def jobs(self) -> Sequence[PrefetchJob]:
        return self.held


class FakeMeters:
    def latest(self, run_id: str) -> UsageSample | None:
        return a_sample(NOW + 1)

    async def host(self) -> HostUsage:
        return HostUsage(
            time=NOW,
            cpus=2,
            cpu_cores_used=0.5,
            load_1m=0.25,
            memory_total_bytes=8 << 30,
            memory_available_bytes=4 << 30,
            disk_total_bytes=100 << 30,
            disk_free_bytes=50 << 30,
        )


class FakeMetrics:
    def render(self) -> bytes:
        return b"# HELP up Whether it is.\nup 1\n"


class FakeParts:
    """All of them, and the services made of them."""

    def __init__(self) -> None:
        self.manager = FakeManager()
        self.consoles = FakeConsoles()
        self.files = FakeFiles()
        self.prefetching = FakePrefetching()
        self.services = Services(
            manager=self.manager,
            consoles=self.consoles,
            files=self.files,
            images=FakeImages(),
            meters=FakeMeters(),
            metrics=FakeMetrics(),
            prefetching=self.prefetching,
            stop_grace_seconds=7.0,
        )

"""Files, images, consoles and meters in memory, for tests of what runs do with them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from executord.core.reasons import Fault, FaultError
from executord.core.run import (
    Environment,
    Image,
    ImagePhase,
    Mount,
    Result,
    Run,
    Stage,
    StageCost,
    UsageSummary,
    Workspace,
)
from executord.ports import (
    CacheEntry,
    ConsoleRecord,
    ContainerFacts,
    FileChange,
    FilesStats,
    HostUsage,
    ImageEntry,
    Kept,
    KeptWorkspace,
    OnOutput,
    OnPhase,
    OnProgress,
    Prepared,
    Progress,
    Provided,
    PruneReport,
    Revision,
    Stream,
    UsageSample,
    VerifyReport,
)


class Gate:
    """Open unless a test closes it: what passes through waits until it is opened again."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.fault: Fault | None = None

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        await self._open.wait()
        if self.fault is not None:
            raise FaultError(self.fault)


class FakeFiles:
    """Workspaces by run id. `preparing`, `copying` and `keeping` can be held, or made to fail."""

    def __init__(self) -> None:
        self.preparing = Gate()
        self.keeping = Gate()
        self.unmounted: Fault | None = None
        self.workspaces: dict[str, Workspace] = {}
        self.kept_workspaces: set[str] = set()
        self.empty: set[str] = set()
        self.kept: Counter[str] = Counter()
        self.copying = Gate()
        self.synced: list[tuple[str, float]] = []
        self.readying = Gate()
        self.ahead: set[str] = set()
        self.ahead_asked: list[tuple[str, str]] = []
        self.held: set[str] = set()

    async def prepare(
        self, run_id: str, revision: str, on_progress: OnProgress, mounts: Sequence[Mount] = ()
    ) -> Prepared:
        on_progress(Progress(what=Stage.PREPARE, files_total=1))
        await self.preparing.passed()
        workspace = Workspace(volume=f"v-{run_id}", tree="", base_revision=revision, way="empty")
        self.workspaces[run_id] = workspace
        return Prepared(workspace=workspace, cost=StageCost(stage=Stage.PREPARE, seconds=0.001))

    async def check_mounted(self, run_id: str, pid: int) -> None:
        if self.unmounted is not None:
            raise FaultError(self.unmounted)

    async def keep(self, run: Run, on_progress: OnProgress) -> Kept:
        on_progress(Progress(what=Stage.FINISH))
        await self.keeping.passed()
        self.kept[run.id] += 1
        result = Result(revision="sha256:" + "a" * 64, head="moved", added=1)
        return Kept(result=result, cost=StageCost(stage=Stage.FINISH, seconds=0.001))

    async def sync(
        self,
        run: Run,
        *,
        at: float,
        standing_still: AbstractAsyncContextManager[None],
        on_progress: OnProgress,
    ) -> Kept:
        on_progress(Progress(what=Stage.FINISH))
        async with standing_still:
            await self.copying.passed()
        await self.keeping.passed()
        self.synced.append((run.id, at))
        result = Result(revision="sha256:" + "b" * 64, head="moved", added=1)
        cost = StageCost(stage=Stage.FINISH, seconds=0.001, way="copy")
        return Kept(result=result, cost=cost)

    async def workspaces_kept(self) -> Sequence[KeptWorkspace]:
        return [
            KeptWorkspace(
                run_id=run_id, bytes=1, inodes=1, made_at=0.0, is_empty=run_id in self.empty
            )
            for run_id in sorted(self.kept_workspaces)
        ]

    async def changes(self, run: Run) -> Sequence[FileChange]:
        return [FileChange(path="new", kind="added", size_bytes=1)] if run.workspace else []

    async def discard(self, run_id: str, *, keep_workspace: bool) -> None:
        if self.workspaces.pop(run_id, None) is not None and keep_workspace:
            self.kept_workspaces.add(run_id)
        elif not keep_workspace:
            self.kept_workspaces.discard(run_id)

    async def is_here(self, revision: str) -> bool:
        return revision in self.ahead

    async def ready_ahead(self, revision: str, holder: str, on_progress: OnProgress) -> StageCost:
        self.ahead_asked.append((revision, holder))
        on_progress(Progress(what="fetching files", files_total=1))
        await self.readying.passed()
        way = "snapshot" if revision in self.ahead else "farm"
        self.ahead.add(revision)
        self.held.add(holder)
        return StageCost(stage=Stage.PREPARE, seconds=0.001, way=way)

    async def verify(self, *, repair: bool) -> AsyncIterator[Progress | VerifyReport]:
        yield VerifyReport(
            snapshots=0,
            blobs=0,
            trees=0,
            revisions=0,
            bytes_read=0,
            seconds=0.0,
            damaged=0,
            mended=0,
        )

    def let_go(self, holder: str) -> None:
        self.held.discard(holder)

    async def stats(self) -> FilesStats:
        raise NotImplementedError

    async def entries(self) -> Sequence[CacheEntry]:
        return []

    async def prune(self, *, dry_run: bool) -> PruneReport:
        return PruneReport(victims=(), freed_bytes=0, dry_run=dry_run)

    async def read_revision(self, digest: str) -> Revision:
        return Revision(tree=digest)


class FakeImages:
    """Gives `image_id`. With `phase` it has to be made first."""

    def __init__(self, image_id: str) -> None:
        self.image_id = image_id
        self.providing = Gate()
        self.phase: ImagePhase | None = None
        self.released: list[str] = []
        self.provided: list[tuple[str, Environment]] = []
        self.here: set[str] = set()

    async def provide(
        self,
        run_id: str,
        environment: Environment,
        *,
        on_phase: OnPhase,
        on_output: OnOutput,
        on_progress: OnProgress,
    ) -> Provided:
        self.provided.append((run_id, environment))
        if self.phase is not None:
            await on_phase(self.phase)
            on_progress(Progress(what=Stage.IMAGE, detail=run_id))
            await on_output(b"building\n")
        await self.providing.passed()
        image = Image(id=self.image_id, reference=environment.image)
        cost = StageCost(stage=Stage.IMAGE, seconds=0.001, way="local")
        return Provided(image=image, costs=(cost,))

    async def has(self, environment: Environment) -> bool:
        return environment.image in self.here

    async def release(self, run_id: str) -> None:
        self.released.append(run_id)

    async def entries(self) -> Sequence[ImageEntry]:
        return []


class FakeConsoles:
    def __init__(self) -> None:
        self.records: dict[str, list[ConsoleRecord]] = {}
        self.collecting: set[str] = set()
        self.sealed: set[str] = set()

    async def append(self, run_id: str, stream: Stream, data: bytes) -> None:
        records = self.records.setdefault(run_id, [])
        offset = records[-1].end if records else 0
        records.append(ConsoleRecord(offset=offset, time=0.0, stream=stream, data=data))

    async def collect(self, run_id: str, container: ContainerFacts) -> None:
        assert container.started_at is not None
        self.collecting.add(run_id)

    async def drain(self, run_id: str) -> None:
        self.collecting.discard(run_id)

    async def seal(self, run_id: str) -> None:
        self.sealed.add(run_id)

    async def read(
        self, run_id: str, *, since: int, follow: bool, stream: Stream | None
    ) -> AsyncIterator[ConsoleRecord]:
        assert not follow
        for record in self.records.get(run_id, []):
            if record.end > since and stream in (None, record.stream):
                yield record

    async def delete(self, run_id: str) -> None:
        self.records.pop(run_id, None)


class FakeMeters:
    def __init__(self) -> None:
        self.running: set[str] = set()
        self.released: set[str] = set()
        self.oom_kills: int | None = 0
        self.broken = False

    def cgroup_parent(self, run_id: str) -> str:
        return f"/executord/{run_id}"

    async def start(self, run_id: str, pid: int) -> None:
        assert pid
        if self.broken:
            raise KeyError("a bug")
        self.running.add(run_id)

    async def finish(self, run_id: str) -> UsageSummary | None:
        self.running.discard(run_id)
        return UsageSummary(
            samples=1,
            seconds=0.1,
            cpu_seconds=0.05,
            cpu_cores_average=0.5,
            cpu_cores_peak=0.5,
            memory_peak_bytes=1,
            memory_average_bytes=1,
            oom_kills=self.oom_kills,
        )

    async def release(self, run_id: str) -> None:
        self.released.add(run_id)

    def record(self, run_id: str) -> Mapping[str, object] | None:
        return {"run": run_id}

    def samples(self, run_id: str, since: float) -> Sequence[UsageSample]:
        return [UsageSample(time=since + 1, cpu_seconds=0.0)] if run_id in self.running else []

    def latest(self, run_id: str) -> UsageSample | None:
        return None

    async def host(self) -> HostUsage:
        raise NotImplementedError

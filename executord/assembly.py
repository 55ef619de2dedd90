"""Builds the parts that runs are made with, from the ground up."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version

import structlog

from executord.config import Settings
from executord.console.archive import ConsoleArchive
from executord.core.reasons import Fault, FaultError, Reason
from executord.engine.docker import DockerEngine
from executord.files.project_files import ProjectFiles
from executord.images.provider import ImageProvider
from executord.journal.journal import SqliteJournal
from executord.ports import EngineFacts
from executord.runs.secrets import SecretFiles, runtime_directory
from executord.state_dir import make_own_store
from executord.upstream.file import FileSink
from executord.upstream.http import HttpSink
from executord.upstream.outbox import Outbox
from executord.usage.metrics import Metrics
from executord.usage.sampler import Samplers

log = structlog.get_logger(__name__)

_ENGINE_PATIENCE_SECONDS = 30.0


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class FilesUnusableError(Exception):
    """The file cache cannot be opened; `is_configured_so`: with this configuration it never can."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.is_configured_so = fault.reason is Reason.WORKSPACE_FAILED


class EngineAwayError(Exception):
    """The engine gave no answer for as long as a start waits for one."""


@dataclass(slots=True)
class Parts:
    journal: SqliteJournal
    engine: DockerEngine
    facts: EngineFacts
    files: ProjectFiles
    images: ImageProvider
    consoles: ConsoleArchive
    meters: Samplers
    metrics: Metrics
    outbox: Outbox | None


class Assembly:
    """Each part that has an end is given to `stack`, which closes them in the reverse order.

    `is_live` knows the runs that go on, once there are any; `status` is told what is waited for.
    """

    def __init__(
        self,
        settings: Settings,
        stack: AsyncExitStack,
        *,
        clock: SystemClock,
        is_live: Callable[[str], bool],
        status: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._stack = stack
        self._clock = clock
        self._is_live = is_live
        self._status = status

    async def build(self) -> Parts:
        settings = self._settings
        journal = SqliteJournal(
            settings.node.state_dir / "journal.db",
            clock=self._clock,
            upstream=settings.upstream.kind != "none",
        )
        await journal.open()
        self._stack.push_async_callback(journal.close)
        engine = DockerEngine(
            url=settings.engine.url, deadline_seconds=settings.engine.deadline_seconds
        )
        await engine.open()
        self._stack.push_async_callback(engine.close)
        facts = await self._engine_facts(engine)
        return Parts(
            journal=journal,
            engine=engine,
            facts=facts,
            files=await self._open_files(journal, engine, facts),
            images=self._images(journal, engine),
            consoles=await self._open_consoles(journal),
            meters=await self._open_meters(journal, facts),
            metrics=Metrics(version=version("executord")),
            outbox=self._outbox(journal),
        )

    async def _engine_facts(self, engine: DockerEngine) -> EngineFacts:
        """A node that starts may be faster than its engine."""
        deadline = self._clock.monotonic() + _ENGINE_PATIENCE_SECONDS
        while True:
            try:
                return await engine.facts()
            except FaultError as error:
                if self._clock.monotonic() > deadline:
                    raise EngineAwayError(
                        f"The engine at {self._settings.engine.url} does not answer: "
                        f"{error.fault.detail} Start it, or correct `engine.url`."
                    ) from error
                log.warning("engine.awaited", detail=error.fault.detail)
            self._status("waiting for the engine")
            await asyncio.sleep(1)

    async def _open_files(
        self, journal: SqliteJournal, engine: DockerEngine, facts: EngineFacts
    ) -> ProjectFiles:
        settings = self._settings
        files = ProjectFiles(
            state_dir=settings.node.state_dir,
            instance=journal.instance,
            store_url=settings.store.url,
            store_options=settings.store.options,
            volumes=engine,
            user=settings.runs.user,
            max_size_bytes=settings.files.max_size_bytes,
            low_watermark=settings.files.low_watermark,
            high_watermark=settings.files.high_watermark,
            min_free_bytes=settings.files.min_free_bytes,
            max_inodes=settings.files.max_inodes,
            min_free_inodes=settings.files.min_free_inodes,
            store_patience_seconds=settings.files.store_patience_seconds,
            mode=settings.files.mode,
            writable=settings.files.writable,
            engine_is_rootless=facts.rootless,
            verify=settings.files.verify,
            scrub_bytes_per_second=settings.files.scrub_per_second_bytes,
        )
        await asyncio.to_thread(make_own_store, settings.node.state_dir, settings.store.url)
        try:
            await files.open()
        except FaultError as error:
            await files.close()
            raise FilesUnusableError(error.fault) from error
        self._stack.push_async_callback(files.close)
        return files

    def _images(self, journal: SqliteJournal, engine: DockerEngine) -> ImageProvider:
        return ImageProvider(
            engine=engine,
            facts=journal,
            clock=self._clock,
            registry=self._settings.images.registry,
            push=self._settings.images.push,
        )

    async def _open_consoles(self, journal: SqliteJournal) -> ConsoleArchive:
        consoles = ConsoleArchive(
            directory=self._settings.node.state_dir,
            limit_bytes=self._settings.runs.console_limit_bytes,
            is_live=self._is_live,
            secrets=self.secret_files(journal).values,
        )
        await consoles.open()
        self._stack.push_async_callback(consoles.close)
        return consoles

    async def _open_meters(self, journal: SqliteJournal, facts: EngineFacts) -> Samplers:
        meters = Samplers(
            interval_seconds=self._settings.usage.interval_seconds,
            cgroup_driver=facts.cgroup_driver,
            cgroup_version=facts.cgroup_version,
            instance=journal.instance,
            disk=self._settings.node.state_dir,
        )
        await meters.open()
        self._stack.push_async_callback(meters.close)
        return meters

    def _outbox(self, journal: SqliteJournal) -> Outbox | None:
        upstream = self._settings.upstream
        sink: HttpSink | FileSink
        match upstream.kind:
            case "http":
                sink = HttpSink(
                    url=upstream.url, clock=self._clock, headers_file=upstream.headers_file
                )
            case "file":
                assert upstream.path is not None
                sink = FileSink(upstream.path)
            case "none":
                return None
        self._stack.push_async_callback(sink.close)
        return Outbox(journal=journal, sink=sink, node=self._settings.node.name, clock=self._clock)

    def secret_files(self, journal: SqliteJournal) -> SecretFiles:
        directory = runtime_directory(self._settings.api.socket.parent, instance=journal.instance)
        return SecretFiles(directory=directory, user=self._settings.runs.user)

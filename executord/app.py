"""Builds every part of the daemon, starts them in order, and stops them in the reverse one."""

import asyncio
import gc
import os
import secrets
import signal
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import structlog
import uvloop

from executord.api.access import AccessRules
from executord.api.server import ApiServer
from executord.api.services import Services
from executord.config import Settings, service_manager
from executord.console.archive import ConsoleArchive
from executord.core.admission import Capacity, Ledger
from executord.core.reasons import Fault, FaultError, Reason
from executord.engine.docker import DockerEngine
from executord.files.project_files import ProjectFiles
from executord.images.provider import ImageProvider
from executord.journal.journal import SqliteJournal
from executord.ports import EngineFacts, JournalError
from executord.runs.ahead import PrepareAhead
from executord.runs.context import RunRules, Tools
from executord.runs.describe import NodeFacts
from executord.runs.feed import Feed
from executord.runs.manager import RunManager
from executord.runs.observer import Observer
from executord.runs.orphans import remove_orphans
from executord.runs.prefetch import Prefetching
from executord.runs.retention import Retention
from executord.runs.secrets import SecretFiles, runtime_directory
from executord.state_dir import lock, make_own_store, node_key
from executord.systemd import Notifier
from executord.upstream.file import FileSink
from executord.upstream.http import HttpSink
from executord.upstream.outbox import Outbox
from executord.usage.metrics import Metrics
from executord.usage.pressure import Pressure
from executord.usage.sampler import Samplers

log = structlog.get_logger(__name__)

EX_OK = 0
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_CONFIG = 78

_ENGINE_PATIENCE_SECONDS = 30.0
_METRICS_SECONDS = 5.0


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def serve(settings: Settings) -> int:
    """Until SIGTERM or SIGINT, or until nothing can be promised any more; an exit status."""
    # Thousands of runs live long: full collections that find nothing cost accepts 30 ms at a time,
    # while what an ended run leaves has to be found before too many have ended.
    gc.set_threshold(10_000, 10, 10)
    return uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    state_dir = settings.node.state_dir
    try:
        held = lock(state_dir)
    except OSError as error:
        _say(f"The state directory {state_dir} cannot be used: {error.strerror}.")
        return EX_IOERR
    if held is None:
        _say(f"Another daemon holds the state directory {state_dir}; this one leaves.")
        return EX_TEMPFAIL
    try:
        async with AsyncExitStack() as stack:
            daemon = await _Daemon(settings, stack).start()
            return await daemon.until_the_end()
    except _EngineAwayError as error:
        _say(str(error))
        return EX_UNAVAILABLE
    except _FilesUnusableError as error:
        _say(str(error))
        return error.status
    except JournalError as error:
        log.critical("journal.failed", why=str(error))
        return EX_IOERR
    finally:
        os.close(held)


def _say(sentence: str) -> None:
    """For whoever reads the standard error of a daemon that does not start."""
    print(f"executord: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - as above


class _FilesUnusableError(Exception):
    """The file cache cannot be opened; `status` is what the daemon leaves with."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.status = EX_CONFIG if fault.reason is Reason.WORKSPACE_FAILED else EX_IOERR


class _EngineAwayError(Exception):
    """The engine gave no answer for as long as a start waits for one."""


@dataclass(slots=True)
class _Parts:
    journal: SqliteJournal
    engine: DockerEngine
    facts: EngineFacts
    files: ProjectFiles
    images: ImageProvider
    consoles: ConsoleArchive
    meters: Samplers
    metrics: Metrics
    outbox: Outbox | None


class _Daemon:
    """Everything that lives from start to stop; `stack` closes it in the reverse order."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._clock = SystemClock()
        self._started_at = self._clock.now()
        self._manager: RunManager
        self._prefetching: Prefetching
        self._notifier = Notifier(service_manager().notify_socket)

    async def start(self) -> "_Daemon":
        parts = await self._build_parts()
        rules = self._rules(parts)
        unfinished = await parts.journal.unfinished_runs()
        live = [run.id for run in unfinished]
        await parts.images.open(live)
        self._stack.push_async_callback(parts.images.close)
        await remove_orphans(parts.engine, rules, live)
        self._manager = await self._build_manager(parts, rules)
        await self._manager.take_up(unfinished)
        self._stack.push_async_callback(self._manager.leave)
        self._prefetching = Prefetching(
            files=parts.files,
            images=parts.images,
            clock=self._clock,
            why_not=Pressure().why_not,
            default_image=rules.default_image,
        )
        self._stack.push_async_callback(self._prefetching.close)
        await self._serve_api(parts)
        self._begin_background_work(parts)
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not look at it
        log.info("daemon.ready", node=rules.node, taken_up=len(unfinished))
        self._notifier.ready(f"{len(unfinished)} runs taken up")
        return self

    async def until_the_end(self) -> int:
        asked_to_leave = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked_to_leave.set)
        failed = self._manager.failed
        failed.add_done_callback(lambda _: asked_to_leave.set())
        await asked_to_leave.wait()
        self._notifier.stopping("leaving; runs go on")
        if failed.done():
            raise failed.result()
        log.info("daemon.leaving", live_runs=len(self._manager.live_runs()))
        return EX_OK

    # -- parts, from the ground up -----------------------------------------------------------------

    async def _build_parts(self) -> _Parts:
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
        return _Parts(
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
                    raise _EngineAwayError(
                        f"The engine at {self._settings.engine.url} does not answer: "
                        f"{error.fault.detail} Start it, or correct `engine.url`."
                    ) from error
                log.warning("engine.awaited", detail=error.fault.detail)
            self._notifier.status("waiting for the engine")
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
            raise _FilesUnusableError(error.fault) from error
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
            secrets=self._secret_files(journal).values,
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

    # -- the manager -------------------------------------------------------------------------------

    def _rules(self, parts: _Parts) -> RunRules:
        runs = self._settings.runs
        return RunRules(
            node=self._settings.node.name,
            instance=parts.journal.instance,
            working_dir=runs.working_dir,
            user=runs.user,
            network=runs.network,
            pids_limit=runs.pids_limit,
            stop_grace_seconds=runs.stop_grace_seconds,
            console_limit_bytes=runs.console_limit_bytes,
            tiers=self._settings.tiers,
            default_tier=runs.default_tier,
            default_image=runs.default_image,
            max_queue=runs.max_queue,
            allowed_mounts=runs.allowed_mounts,
            private_paths=_private_paths(self._settings),
            boot_id=_boot_id(),
        )

    async def _build_manager(self, parts: _Parts, rules: RunRules) -> RunManager:
        settings = self._settings
        tools = Tools(
            engine=parts.engine,
            files=parts.files,
            images=parts.images,
            consoles=parts.consoles,
            meters=parts.meters,
            journal=parts.journal,
            clock=self._clock,
            secrets=self._secret_files(parts.journal),
            rules=rules,
        )
        self._stack.push_async_callback(tools.secrets.close)
        facts = NodeFacts(
            start=secrets.token_hex(4),
            version=version("executord"),
            started_at=self._started_at,
            store_url=settings.store.url,
            engine=parts.facts,
            workspaces=parts.files.workspace_modes,
        )
        observer = Observer(
            journal=parts.journal,
            metrics=parts.metrics,
            restore_samples=parts.meters.restore,
        )
        return RunManager(
            tools=tools,
            facts=facts,
            ledger=Ledger(host=_host(), tiers=settings.tiers),
            key=await asyncio.to_thread(node_key, settings.node.state_dir),
            observer=observer,
            feed=Feed(await parts.journal.last_seq()),
        )

    def _secret_files(self, journal: SqliteJournal) -> SecretFiles:
        directory = runtime_directory(self._settings.api.socket.parent, instance=journal.instance)
        return SecretFiles(directory=directory, user=self._settings.runs.user)

    def _is_live(self, run_id: str) -> bool:
        return self._manager.is_live(run_id)

    # -- the outside -------------------------------------------------------------------------------

    async def _serve_api(self, parts: _Parts) -> None:
        settings = self._settings
        listen = settings.api.listen
        server = ApiServer(
            services=Services(
                manager=self._manager,
                consoles=parts.consoles,
                files=parts.files,
                images=parts.images,
                meters=parts.meters,
                metrics=parts.metrics,
                prefetching=self._prefetching,
                stop_grace_seconds=settings.runs.stop_grace_seconds,
            ),
            access=AccessRules(
                admin=settings.access.admin,
                operator=settings.access.operator,
                submit=settings.access.submit,
                read=settings.access.read,
            ),
            socket_path=settings.api.socket,
            socket_mode=settings.api.socket_mode,
            socket_group=settings.api.socket_group,
            socket_fd=next(iter(service_manager().listen_fds), None),
            listen=f"{listen.host}:{listen.port}" if listen else "",
        )
        await server.start()
        self._stack.push_async_callback(server.stop)

    def _begin_background_work(self, parts: _Parts) -> None:
        settings = self._settings
        retention = Retention(
            journal=parts.journal,
            consoles=parts.consoles,
            clock=self._clock,
            files=parts.files,
            runs_days=settings.retention.runs_days,
            events_days=settings.retention.events_days,
        )
        self._own(retention.run(), "retention")
        self._own(self._watch_journal(parts.journal), "journal-watch")
        self._own(self._refresh_metrics(parts), "metrics")
        if settings.runs.prepare_ahead:
            ahead = PrepareAhead(
                files=parts.files,
                images=parts.images,
                queue=self._manager,
                most=settings.runs.prepare_ahead,
                why_not=Pressure().why_not,
            )
            self._manager.watch_queue(ahead)
            self._own(ahead.run(), "prepare-ahead")
        if parts.outbox is not None:
            parts.journal.subscribe(parts.outbox.wake)
            self._own(parts.outbox.run(), "outbox")
        watchdog_seconds = service_manager().watchdog_seconds
        if watchdog_seconds is not None:
            self._own(self._feed_watchdog(watchdog_seconds), "watchdog")

    def _own(self, work: "asyncio._CoroutineLike[None]", name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._background_ended)
        self._stack.push_async_callback(_end, task)

    def _background_ended(self, task: "asyncio.Task[None]") -> None:
        """Background work has no end of its own: when it ends, something it needs is broken."""
        if task.cancelled():
            return
        error = task.exception()
        log.error("daemon.background_work_ended", task=task.get_name(), exc_info=error)
        if isinstance(error, JournalError) and not self._manager.failed.done():
            self._manager.failed.set_result(error)

    async def _watch_journal(self, journal: SqliteJournal) -> None:
        """A disk that dies is noticed also while nobody writes."""
        await journal.failed.wait()
        raise JournalError(journal.failure)

    async def _refresh_metrics(self, parts: _Parts) -> None:
        while True:
            counts = Counter(run.state for run in self._manager.live_runs())
            parts.metrics.set_live(counts)
            parts.metrics.set_outbox(await parts.journal.outbox_state())
            parts.metrics.set_host(await parts.meters.host())
            with suppress(FaultError):  # a disk that is away is told by what needs it
                report = (await parts.files.stats()).report
                if report is not None:
                    parts.metrics.set_cache(report)
            await asyncio.sleep(_METRICS_SECONDS)

    async def _feed_watchdog(self, seconds: float) -> None:
        """From the event loop itself: a loop that is blocked does not feed it."""
        while True:
            self._notifier.watchdog()
            await asyncio.sleep(seconds / 3)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


def _host() -> Capacity:
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    memory_bytes = psutil.virtual_memory().total
    return Capacity(cpus=os.cpu_count() or 1, memory_bytes=memory_bytes, gpus=gpus)


def _private_paths(settings: Settings) -> tuple[Path, ...]:
    """What no run may ever see a part of."""
    paths = [settings.node.state_dir, settings.api.socket]
    for url, scheme in ((settings.engine.url, "unix://"), (settings.store.url, "file://")):
        if url.startswith(scheme):
            paths.append(Path(url.removeprefix(scheme)))
    return tuple(paths)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

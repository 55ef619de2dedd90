"""The daemon's life: its parts are built, started in order, and stopped in the reverse one."""

import asyncio
import gc
import os
import secrets
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack, suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import structlog
import uvloop

from executord.api.access import AccessRules
from executord.api.server import ApiServer
from executord.api.services import Services
from executord.assembly import (
    Assembly,
    EngineAwayError,
    FilesUnusableError,
    Parts,
    SystemClock,
)
from executord.config import Settings, service_manager
from executord.core.admission import Capacity, Ledger
from executord.core.reasons import FaultError
from executord.journal.journal import SqliteJournal
from executord.ports import JournalError
from executord.runs.ahead import PrepareAhead
from executord.runs.context import RunRules, Tools
from executord.runs.describe import NodeFacts
from executord.runs.feed import Feed
from executord.runs.kept import Settling
from executord.runs.manager import RunManager
from executord.runs.observer import Observer
from executord.runs.orphans import remove_orphans
from executord.runs.prefetch import Prefetching
from executord.runs.retention import Retention
from executord.state_dir import lock, node_key
from executord.systemd import Notifier
from executord.usage.pressure import Pressure

log = structlog.get_logger(__name__)

EX_OK = 0
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_CONFIG = 78

_METRICS_SECONDS = 5.0


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
    except EngineAwayError as error:
        _say(str(error))
        return EX_UNAVAILABLE
    except FilesUnusableError as error:
        _say(str(error))
        return EX_CONFIG if error.is_configured_so else EX_IOERR
    except JournalError as error:
        log.critical("journal.failed", why=str(error))
        return EX_IOERR
    finally:
        os.close(held)


def _say(sentence: str) -> None:
    """For whoever reads the standard error of a daemon that does not start."""
    print(f"executord: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - as above


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
        self._assembly = Assembly(
            settings,
            stack,
            clock=self._clock,
            is_live=self._is_live,
            status=self._notifier.status,
        )

    async def start(self) -> "_Daemon":
        parts = await self._assembly.build()
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

    # -- the manager -------------------------------------------------------------------------------

    def _rules(self, parts: Parts) -> RunRules:
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

    async def _build_manager(self, parts: Parts, rules: RunRules) -> RunManager:
        settings = self._settings
        tools = Tools(
            engine=parts.engine,
            files=parts.files,
            images=parts.images,
            consoles=parts.consoles,
            meters=parts.meters,
            journal=parts.journal,
            clock=self._clock,
            secrets=self._assembly.secret_files(parts.journal),
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

    def _is_live(self, run_id: str) -> bool:
        return self._manager.is_live(run_id)

    # -- the outside -------------------------------------------------------------------------------

    async def _serve_api(self, parts: Parts) -> None:
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

    def _begin_background_work(self, parts: Parts) -> None:
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
        settling = Settling(files=parts.files, runs=self._manager)
        self._own(settling.run(), "kept-workspaces")
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

    async def _refresh_metrics(self, parts: Parts) -> None:
        while True:
            counts = Counter(run.state for run in self._manager.live_runs())
            parts.metrics.set_live(counts)
            parts.metrics.set_outbox(await parts.journal.outbox_state())
            parts.metrics.set_host(await parts.meters.host())
            with suppress(FaultError):  # a disk that is away is told by what needs it
                stats = await parts.files.stats()
                parts.metrics.set_damage(damaged=stats.damaged, mended=stats.mended)
                if stats.report is not None:
                    parts.metrics.set_cache(stats.report)
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

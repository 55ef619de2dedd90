"""The console output of every run, on disk, for as long as the run's record is kept.

Layout: `consoles-v1/<run>/<first offset>.seg` while output may come, and one file,
`consoles-v1/<run>/console.sealed`, afterwards. Offsets count output bytes as they are shown, that
is after secrets were masked.
"""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from executord.console.collector import Collector
from executord.console.kept import Console, directory_name, fault_of, remove
from executord.console.reading import ConsoleReader
from executord.console.redaction import patterns_of
from executord.console.sources import JsonLogSource, Source
from executord.console.tail import Tail
from executord.core.reasons import FaultError
from executord.ports import ConsoleRecord, ContainerFacts, Stream

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

LAYOUT = "consoles-v1"
_DRAIN_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 2.0
_READERS = 4
_WRITERS = 2


class ConsoleArchive:
    """Implements ports.Consoles.

    `limit_bytes` bounds one console on disk: its first and its last half are kept. `is_live` says
    whether output of a run may still come: reading with `follow` then waits, also before the first
    byte. `secrets` gives what must not be shown of a run.
    """

    def __init__(
        self,
        *,
        directory: Path,
        limit_bytes: int,
        is_live: Callable[[str], bool],
        secrets: Callable[[str], Awaitable[Sequence[str]]] | None = None,
        open_source: Callable[[Path], Source] = JsonLogSource,
        poll_seconds: float = 0.03,
        sync_seconds: float = 1.0,
        drain_seconds: float = _DRAIN_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._root = directory / LAYOUT
        self._limit_bytes = limit_bytes
        self._is_live = is_live
        self._secrets = secrets
        self._open_source = open_source
        self._sync_seconds = sync_seconds
        self._drain_seconds = drain_seconds
        self._now = now
        self._collector = Collector(poll_seconds=poll_seconds)
        self._consoles: dict[str, Console] = {}
        self._loading: dict[str, asyncio.Task[Console]] = {}
        self._sealing: dict[str, asyncio.Task[None]] = {}
        self._unsynced: set[Console] = set()
        self._written_to = asyncio.Event()
        self._syncing: asyncio.Task[None] | None = None
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="console-read")
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="console-write")
        self._open = False

    async def open(self) -> None:
        """FaultError when the directory cannot be made."""
        await self._in_thread(self._writers, _make_directory, self._root)
        self._open = True
        self._collector.start()
        self._syncing = asyncio.create_task(self._sync_now_and_then(), name="console-sync")

    async def close(self) -> None:
        """Containers may run on: what they write meanwhile is collected after the next `open`."""
        self._open = False
        for console in self._consoles.values():
            console.wake()
        if self._syncing is not None:
            self._syncing.cancel()
            await asyncio.wait({self._syncing})
        await asyncio.to_thread(self._collector.stop)
        unfinished = {*self._loading.values(), *self._sealing.values()}
        if unfinished:
            await asyncio.wait(unfinished)
        await self._sync()
        for console in self._consoles.values():
            console.segments.close()
        self._consoles.clear()
        for executor in (self._readers, self._writers):
            await asyncio.to_thread(executor.shutdown)

    # -- writing -----------------------------------------------------------------------------------

    def register_secrets(self, run_id: str, values: Iterable[str]) -> None:
        """What must not be shown of a run from now on, besides what `secrets` tells."""
        console = self._consoles.get(run_id)
        if console is None:
            console = self._consoles[run_id] = self._make(run_id)
        console.patterns = tuple(sorted({*console.patterns, *patterns_of(values)}))

    async def append(self, run_id: str, stream: Stream, data: bytes) -> None:
        """FaultError DISK_FULL, …; nothing happens once the console is sealed."""
        console = await self._console(run_id)
        if not data or console.closed:
            return
        await self._learn_secrets(run_id, console)
        async with console.appending:
            console.aside.patterns = console.patterns
            await self._keep(console, stream, console.aside.feed(data))

    async def collect(self, run_id: str, container: ContainerFacts) -> None:
        console = await self._console(run_id)
        if console.collecting or console.drained or console.closed or not container.log_path:
            return
        await self._learn_secrets(run_id, console)
        await self._flush_appended(console)
        console.collecting = True
        loop = asyncio.get_running_loop()

        def on_change() -> None:
            loop.call_soon_threadsafe(self._note_written, console)

        open_tail = functools.partial(self._open_tail, console, Path(container.log_path))
        self._collector.add(run_id, open_tail, on_change)

    async def drain(self, run_id: str) -> None:
        """At the latest after a minute; what is missing then is told by a gap."""
        console = self._consoles.get(run_id)
        if console is None or not console.collecting:
            return
        future = self._collector.drain(run_id, within_seconds=self._drain_seconds)
        if future is not None:
            async with asyncio.timeout(self._drain_seconds + _LOOK_AGAIN_SECONDS):
                complete = await asyncio.shield(asyncio.wrap_future(future))
            if not complete and console.collecting:
                await self._keep(console, "gap", b"")
        console.collecting = False
        console.drained = True

    async def seal(self, run_id: str) -> None:
        """Where there is no space to compress it, it stays as it is."""
        console = await self._console(run_id)
        if console.segments.retired:
            return
        await self.drain(run_id)
        if run_id not in self._sealing:
            self._sealing[run_id] = asyncio.create_task(self._seal(run_id, console))
        await asyncio.shield(self._sealing[run_id])

    async def delete(self, run_id: str) -> None:
        await self.drain(run_id)
        if run_id in self._sealing:
            await asyncio.wait({self._sealing[run_id]})
        console = self._consoles.pop(run_id, None)
        if console is not None:
            self._unsynced.discard(console)
            console.end()
            await self._in_thread(self._writers, console.segments.retire)
        await self._in_thread(self._writers, remove, self._directory(run_id))

    # -- reading -----------------------------------------------------------------------------------

    async def read(
        self, run_id: str, *, since: int, follow: bool, stream: Stream | None
    ) -> AsyncGenerator[ConsoleRecord, None]:
        """A run that is neither known here nor live ends at once. FaultError when reading fails."""
        console = await self._console(run_id)
        reader = ConsoleReader(console.segments, since=max(0, since), stream=stream)
        changed = asyncio.Event()
        console.followers.add(changed)
        try:
            while self._open:
                changed.clear()
                last_look = not (follow and self._may_grow(run_id, console))
                records = await self._in_thread(self._readers, reader.next_records)
                for record in records:
                    yield record
                if not records and last_look:
                    return
                if not records:
                    await _wait(changed, _LOOK_AGAIN_SECONDS)
        finally:
            console.followers.discard(changed)
            self._forget_if_idle(run_id, console)
            if self._open:
                self._readers.submit(reader.close)
            else:
                reader.close()

    # -- inside ------------------------------------------------------------------------------------

    def _directory(self, run_id: str) -> Path:
        return self._root / directory_name(run_id)

    def _make(self, run_id: str) -> Console:
        return Console.at(self._directory(run_id), self._limit_bytes)

    async def _console(self, run_id: str) -> Console:
        """The one object that stands for an unsealed console; a sealed one is not kept."""
        console = self._consoles.get(run_id)
        if console is not None and console.loaded:
            return console
        if run_id not in self._loading:
            self._loading[run_id] = asyncio.create_task(self._load(run_id))
        return await asyncio.shield(self._loading[run_id])

    async def _load(self, run_id: str) -> Console:
        try:
            console = self._consoles.get(run_id) or self._make(run_id)
            await self._in_thread(self._writers, console.load)
            if not console.closed:
                self._consoles[run_id] = console
            return console
        finally:
            del self._loading[run_id]

    def _may_grow(self, run_id: str, console: Console) -> bool:
        return not console.closed and (console.collecting or self._is_live(run_id))

    def _forget_if_idle(self, run_id: str, console: Console) -> None:
        idle = not (console.followers or console.collecting or console.segments.is_writing)
        if idle and not self._is_live(run_id) and self._consoles.get(run_id) is console:
            del self._consoles[run_id]

    def _open_tail(self, console: Console, path: Path) -> Tail:
        return Tail(
            source=self._open_source(path),
            segments=console.segments,
            patterns=lambda: console.patterns,
            now=self._now,
        )

    async def _learn_secrets(self, run_id: str, console: Console) -> None:
        if self._secrets is not None and not console.secrets_known:
            self.register_secrets(run_id, await self._secrets(run_id))
            console.secrets_known = True

    async def _keep(self, console: Console, stream: Stream, data: bytes) -> None:
        if data or stream == "gap":
            keep = functools.partial(console.segments.write_aside, stream, self._now(), data)
            await self._in_thread(self._writers, keep)
            self._note_written(console)

    async def _flush_appended(self, console: Console) -> None:
        async with console.appending:
            await self._keep(console, "build", console.aside.flush())

    def _note_written(self, console: Console) -> None:
        self._unsynced.add(console)
        self._written_to.set()
        console.wake()

    async def _seal(self, run_id: str, console: Console) -> None:
        try:
            await self._flush_appended(console)
            console.end()
            await self._in_thread(self._writers, console.seal)
        except FaultError as error:
            log.warning("console.not_sealed", run_id=run_id, detail=error.fault.detail)
        finally:
            console.end()
            console.segments.close()
            self._consoles.pop(run_id, None)
            self._unsynced.discard(console)
            del self._sealing[run_id]

    async def _sync_now_and_then(self) -> None:
        while True:
            await self._written_to.wait()
            await asyncio.sleep(self._sync_seconds)
            self._written_to.clear()
            await self._sync()

    async def _sync(self) -> None:
        """Best effort: what a power cut takes is read again from where it came."""
        consoles, self._unsynced = self._unsynced, set()
        for console in consoles:
            try:
                await self._in_thread(self._writers, console.segments.sync)
            except FaultError as error:
                log.error("console.sync_failed", detail=error.fault.detail)  # noqa: TRY400

    async def _in_thread(
        self,
        executor: ThreadPoolExecutor,
        work: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(executor, functools.partial(work, *args, **kwargs))
        except OSError as error:
            raise fault_of(error) from error


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)

"""`cache verify`: everything that the cache holds is read again, now, while the rest goes on."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from executord.core.reasons import Reason
from executord.files.cache.inodes import Inodes
from executord.files.faults import CancelledWorkError, fault
from executord.files.parts import Parts
from executord.files.progress import relay
from executord.files.system.hashing import nothing
from executord.ports import Progress, VerifyReport

_TOLD = 16


class Verifying:
    """One at a time: a second one waits for the first, and may be given up meanwhile."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[VerifyReport]] = set()
        self._leaving = threading.Event()

    async def close(self) -> None:
        self._leaving.set()
        if self._under_way:
            await asyncio.wait(set(self._under_way))

    async def verify(self, *, repair: bool) -> AsyncIterator[Progress | VerifyReport]:
        """Progress now and then, the report last. Raises FaultError."""
        yield Progress(what="waiting for another check" if self._turn.locked() else "checking")
        async with self._turn:
            told: asyncio.Queue[Progress] = asyncio.Queue(_TOLD)
            cancelled = threading.Event()
            task = asyncio.create_task(
                self._run(told, cancelled, repair=repair), name="cache verify"
            )
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            try:
                while not task.done():
                    news = asyncio.ensure_future(told.get())
                    await asyncio.wait((task, news), return_when=asyncio.FIRST_COMPLETED)
                    if news.done():
                        yield news.result()
                    else:
                        news.cancel()
                yield self._outcome(task)
            finally:
                cancelled.set()
                await asyncio.wait((task,))
                if not task.cancelled():
                    task.exception()  # whoever closed this does not want it

    def _outcome(self, task: asyncio.Task[VerifyReport]) -> VerifyReport:
        try:
            return task.result()
        except CancelledWorkError as error:
            raise fault(
                Reason.INTERNAL, "The daemon leaves; the check was not finished."
            ) from error

    async def _run(
        self,
        told: asyncio.Queue[Progress],
        cancelled: threading.Event,
        *,
        repair: bool,
    ) -> VerifyReport:
        def tell(progress: Progress) -> None:
            if told.full():
                told.get_nowait()
            told.put_nowait(progress)

        stop = _Either(cancelled, self._leaving)
        threads = ThreadPoolExecutor(1, thread_name_prefix="files-verify")
        try:
            return await self._parts.inspection.run(
                found_by="verify",
                mend=repair,
                known=Inodes(),
                threads=threads,
                tell=relay(tell),
                cancelled=stop,
                rest=nothing,
            )
        finally:
            await asyncio.to_thread(threads.shutdown)


class _Either(threading.Event):
    """Set when one of two is."""

    def __init__(self, mine: threading.Event, leaving: threading.Event) -> None:
        super().__init__()
        self._mine = mine
        self._leaving = leaving

    def is_set(self) -> bool:
        return self._mine.is_set() or self._leaving.is_set()

    def set(self) -> None:
        self._mine.set()

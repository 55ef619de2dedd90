"""Reading the whole cache in the background, when nobody else wants the disk.

The first pass begins with the daemon, and with what was used last, so that most first runs find
their files checked; it skips what others have read meanwhile. Later passes read everything again.
"""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import structlog

from executord.core.reasons import FaultError
from executord.files.cache.blobs import Blobs
from executord.files.cache.inodes import Inodes
from executord.files.cache.inspection import Inspection
from executord.files.cache.integrity import Integrity, nobody
from executord.files.faults import CancelledWorkError
from executord.files.system.priority import set_idle

log = structlog.get_logger(__name__)

_BETWEEN_PASSES_SECONDS = 7 * 86_400.0
_AFTER_A_FAULT_SECONDS = 600.0
_LEAST_BYTES = 16 << 10  # what opening a file costs besides
_LEAST_REST_SECONDS = 0.02
_WHILE_BUSY_SECONDS = 0.05


class Scrub:
    """`bytes_per_second` 0: none. Owned by whoever awaits `run` and calls `leave`."""

    def __init__(
        self, *, inspection: Inspection, integrity: Integrity, blobs: Blobs, bytes_per_second: int
    ) -> None:
        self._inspection = inspection
        self._integrity = integrity
        self._blobs = blobs
        self._rate = bytes_per_second
        self._leaving = threading.Event()
        self._left = asyncio.Event()
        self._owed_seconds = 0.0
        self.passes = 0

    def leave(self) -> None:
        self._leaving.set()
        self._left.set()

    async def run(self) -> None:
        """Until `leave`; ends soon after."""
        if not self._rate:
            return
        threads = ThreadPoolExecutor(1, thread_name_prefix="files-scrub", initializer=_give_way)
        try:
            while not self._leaving.is_set():
                pause = await self._pass(threads)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._left.wait()
        finally:
            await asyncio.to_thread(threads.shutdown)

    async def _pass(self, threads: ThreadPoolExecutor) -> float:
        """Gives how long to wait for the next one, in seconds."""
        try:
            report = await self._inspection.run(
                found_by="scrub",
                mend=True,
                known=Inodes() if self.passes else self._blobs.found_right,
                threads=threads,
                tell=nobody,
                cancelled=self._leaving,
                rest=self._rest,
            )
        except CancelledWorkError:
            return 0.0
        except FaultError as error:
            log.warning("cache.scrub_failed", detail=error.fault.detail)
            return _AFTER_A_FAULT_SECONDS
        except Exception:  # a bug here must not end the scrub for good
            log.exception("cache.scrub_crashed")
            return _AFTER_A_FAULT_SECONDS
        log.info(
            "cache.scrubbed",
            snapshots=report.snapshots,
            blobs=report.blobs,
            bytes_read=report.bytes_read,
            seconds=round(report.seconds, 3),
            damaged=report.damaged,
            mended=report.mended,
            skipped=len(report.skipped),
        )
        if report.skipped:
            return _AFTER_A_FAULT_SECONDS
        self.passes += 1
        return _BETWEEN_PASSES_SECONDS

    def _rest(self, size: int) -> None:
        """In the thread that reads: keep to the rate, and out of the way of runs."""
        self._owed_seconds += max(size, _LEAST_BYTES) / self._rate
        while self._integrity.is_busy and not self._leaving.is_set():
            time.sleep(_WHILE_BUSY_SECONDS)
        if self._owed_seconds >= _LEAST_REST_SECONDS:
            owed, self._owed_seconds = self._owed_seconds, 0.0
            self._leaving.wait(owed)


def _give_way() -> None:
    set_idle(threading.get_native_id(), idle=True)

"""A bucket whose calls end in bounded time, also on a mount that has stopped answering.

A system call on a dead network mount cannot be interrupted. So each call is made in a daemon
thread, which the process can leave behind: the caller goes on with STORE_UNAVAILABLE.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from executord.core.reasons import Reason
from executord.files.faults import fault
from executord.files.store.bucket import Bucket, Upload

_T = TypeVar("_T")

CALL_SECONDS = 60.0
STALL_SECONDS = 300.0
_PIECES_AHEAD = 4
_IDLE_SECONDS = 10.0
_LOOK_SECONDS = 0.5


class _Job(Generic[_T]):
    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self._result: _T
        self._error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            self._error = error
        self.done.set()

    def result(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._result


class Workers:
    """Daemon threads that take one job at a time; one that hangs is not waited for."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[_Job[object]]] = []
        self._lock = threading.Lock()

    def start(self, work: Callable[[], _T]) -> _Job[_T]:
        job = _Job(work)
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = queue.SimpleQueue()
            threading.Thread(target=self._live, args=(inbox,), name="store", daemon=True).start()
        inbox.put(job)  # type: ignore[arg-type]
        return job

    def _live(self, inbox: "queue.SimpleQueue[_Job[object]]") -> None:
        while True:
            try:
                job = inbox.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        return
                continue
            job.run()
            with self._lock:
                self._idle.append(inbox)
            del job


class WatchedBucket:
    """`open_it` is tried until it succeeds."""

    def __init__(
        self,
        where: str,
        open_it: Callable[[], Bucket],
        *,
        call_seconds: float = CALL_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._where = where
        self._workers = Workers()
        self._call_seconds = call_seconds
        self._stall_seconds = stall_seconds
        self._inner = self._call("be opened", open_it)
        self.parallelism = self._inner.parallelism

    def size(self, key: str) -> int | None:
        return self._call(f"look for {key}", lambda: self._inner.size(key))

    def read(self, key: str) -> Iterator[bytes]:
        pieces: queue.Queue[bytes | None] = queue.Queue(_PIECES_AHEAD)
        left = threading.Event()

        def pump() -> None:
            try:
                for piece in self._inner.read(key):
                    if not _put(pieces, piece, left):
                        return
            finally:
                _put(pieces, None, left)

        job = self._workers.start(pump)
        try:
            while True:
                try:
                    piece = pieces.get(timeout=self._call_seconds)
                except queue.Empty:
                    raise self._silent(f"read {key}") from None
                if piece is None:
                    break
                yield piece
        finally:
            left.set()
        job.done.wait(self._call_seconds)
        job.result()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._call(f"read {key}", lambda: self._inner.read_range(key, start, length))

    def path_of(self, key: str) -> str | None:
        return self._inner.path_of(key)

    def put_many(self, uploads: Iterable[Upload], on_sent: Callable[[Upload], None]) -> None:
        """Given up when for STALL_SECONDS nothing was sent or synced."""
        moved = time.monotonic()

        def note() -> None:
            nonlocal moved
            moved = time.monotonic()

        def noted(pieces: Iterable[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                note()
                yield piece

        def watched(upload: Upload) -> Upload:
            return replace(upload, open=lambda: noted(upload.open()))

        def sent(upload: Upload) -> None:
            note()
            on_sent(upload)

        job = self._workers.start(lambda: self._inner.put_many(map(watched, uploads), sent))
        while not job.done.wait(_LOOK_SECONDS):
            if time.monotonic() - moved > self._stall_seconds:
                raise self._silent("take new objects")
        job.result()

    def swap(self, key: str, expected: bytes, new: bytes) -> bool:
        return self._call(f"move {key}", lambda: self._inner.swap(key, expected, new))

    def keys(self, prefix: str) -> Sequence[str]:
        return self._call(f"list {prefix}", lambda: self._inner.keys(prefix))

    def _call(self, what: str, work: Callable[[], _T]) -> _T:
        job = self._workers.start(work)
        if not job.done.wait(self._call_seconds):
            raise self._silent(what)
        return job.result()

    def _silent(self, what: str) -> Exception:
        return fault(
            Reason.STORE_UNAVAILABLE,
            f"The store {self._where} cannot {what}: it does not answer any more.",
        )


def _put(pieces: "queue.Queue[bytes | None]", piece: bytes | None, left: threading.Event) -> bool:
    while not left.is_set():
        try:
            pieces.put(piece, timeout=_LOOK_SECONDS)
        except queue.Full:
            continue
        return True
    return False

"""Large blobs, piece by piece: read ahead, hashed, and written at the same time.

What is there of a blob stays under its digest when the download breaks off, or the daemon is
killed. The next one hashes that again and goes on behind it.
"""

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from executord.core.reasons import FaultError, Reason
from executord.files.cache.blobs import BlobBatch, BlobKey, Blobs
from executord.files.faults import CancelledWorkError, corrupt, disk
from executord.files.model import digests
from executord.files.progress import Counter
from executord.files.store.store import Store
from executord.files.system import disk as disks

PIECE_BYTES = 4 << 20
_LOCAL_AHEAD = 3
_REMOTE_AHEAD = 8
_WRITEBACK_BYTES = 32 << 20
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class _OldPieceError(Exception):
    """What was there from before does not belong to the blob."""


class LargeBlobs:
    """Blocks; any thread. Nobody else may fetch the same blob meanwhile."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._ahead = _LOCAL_AHEAD if store.parallelism == 1 else _REMOTE_AHEAD

    def into(
        self,
        batch: BlobBatch,
        key: BlobKey,
        size: int,
        counter: Counter,
        cancelled: threading.Event,
    ) -> None:
        """Raises FaultError (FILES_CORRUPT, DISK_FULL, the store's), CancelledWorkError."""
        partial = self._blobs.partial(key)
        try:
            self._fill(partial, key, size, counter, cancelled)
        except _OldPieceError:
            Path(partial).unlink(missing_ok=True)
            with _explained(key):
                self._fill(partial, key, size, counter, cancelled)
        with disk("write into the file cache"):
            path = batch.new_path()
            inode = _finish(partial, batch.mode_of(key), batch.owner)
            os.rename(partial, path)  # noqa: PTH104 - as in the batch
            batch.adopt(key, size, path, inode)
        counter.add(1, 0)

    def _fill(
        self, partial: str, key: BlobKey, size: int, counter: Counter, cancelled: threading.Event
    ) -> None:
        with disk("write into the file cache"):
            fd = os.open(partial, _OPEN, 0o600)
        try:
            hasher = hashlib.sha256()
            with disk("read what is here of a large file"):
                start = _rehash(fd, hasher, size, cancelled)
            resumed = start > 0
            counter.add(0, start)
            done = start + self._go_on(fd, hasher, key, (start, size), counter, cancelled)
            if done == size and digests.PREFIX + hasher.hexdigest() == key.digest:
                with disk("write into the file cache"):
                    os.ftruncate(fd, size)
                return
        except FaultError as error:
            if error.fault.reason is Reason.DISK_FULL:
                Path(partial).unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        Path(partial).unlink(missing_ok=True)
        counter.add(0, -done)
        if resumed:
            raise _OldPieceError
        what = "has other content" if done == size else f"has {done} instead of {size} bytes"
        raise corrupt(f"A file in the store {self._store.url} is damaged: {key.digest} {what}.")

    def _go_on(  # noqa: PLR0917 - private, and all of it is needed
        self,
        fd: int,
        hasher: "hashlib._Hash",
        key: BlobKey,
        span: tuple[int, int],
        counter: Counter,
        cancelled: threading.Event,
    ) -> int:
        """Bytes read, hashed and written from `span[0]` on."""
        start, size = span
        done = synced = 0
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing:
            for piece in self._pieces(key.digest, start, size):
                if cancelled.is_set():
                    raise CancelledWorkError
                hashed = hashing.submit(hasher.update, piece)
                with disk("write into the file cache"):
                    disks.write_piece(fd, piece)
                hashed.result()
                done += len(piece)
                counter.add(0, len(piece))
                if done - synced >= _WRITEBACK_BYTES:
                    disks.start_writeback(fd, start + synced, done - synced)
                    synced = done
        return done

    def _pieces(self, digest: str, start: int, size: int) -> Iterator[bytes]:
        """In order, a few read ahead. Ends early where the object does."""
        pool = ThreadPoolExecutor(self._ahead, thread_name_prefix="read-ahead")
        under_way: deque[tuple[Future[bytes], int]] = deque()
        try:
            at = start
            while at < size or under_way:
                while at < size and len(under_way) < self._ahead:
                    length = min(PIECE_BYTES, size - at)
                    future = pool.submit(self._store.blob_range, digest, at, length)
                    under_way.append((future, length))
                    at += length
                future, length = under_way.popleft()
                piece = future.result()
                yield piece
                if len(piece) < length:
                    return
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _rehash(fd: int, hasher: "hashlib._Hash", size: int, cancelled: threading.Event) -> int:
    """How many bytes are here already; the descriptor stands behind them."""
    seen = 0
    while seen < size and (chunk := os.read(fd, min(PIECE_BYTES, size - seen))):
        if cancelled.is_set():
            raise CancelledWorkError
        hasher.update(chunk)
        seen += len(chunk)
    os.ftruncate(fd, seen)
    return seen


def _finish(path: str, mode: int, owner: tuple[int, int]) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(fd, mode)
        disks.chown_if_needed(fd, owner)
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


@contextlib.contextmanager
def _explained(key: BlobKey) -> Iterator[None]:
    try:
        yield
    except _OldPieceError as error:
        raise corrupt(f"The node's own part of {key.digest} changes while it is read.") from error

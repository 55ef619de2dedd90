"""Changed files on their way: into the node's blobs, where they stay the same, and to the store.

Files go in batches: written, durable on the node, noted, sent, confirmed, noted. So memory is
bounded by a batch, and whatever is killed in between goes on with the next one.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

from executord.core.reasons import Reason
from executord.files.cache.blobs import BlobBatch, BlobKey, Blobs, WrongContentError
from executord.files.faults import CancelledWorkError, disk, fault
from executord.files.model import digests
from executord.files.progress import Counter
from executord.files.store.patience import Patience
from executord.files.store.sending import NewBlob
from executord.files.store.store import Store
from executord.files.system.directories import open_regular, read_chunks
from executord.files.workspace.changes import Found, Skip
from executord.files.workspace.holes import hole_bytes, sparse_chunks
from executord.files.workspace.upload_journal import Note, UploadJournal, mark_of
from executord.ports import OnProgress

MAX_FILE_BYTES = 256 << 30
MAX_HOLE_BYTES = 16 << 30
_COMMIT_FILES = 4096
_COMMIT_BYTES = 512 << 20
_FEW_FILES = 64
_FEW_BYTES = 8 << 20


class DamagedBlobError(Exception):
    """A blob that the journal believed in is not what it was: take the files in again."""


class Intake:
    """For one thread. Without a journal nothing is noted; `hold` sends nothing before `send`.

    `files_sent` and `bytes_sent` are what the store lacked.
    """

    def __init__(
        self,
        *,
        blobs: Blobs,
        store: Store,
        patience: Patience,
        cancelled: threading.Event,
        on_progress: OnProgress,
        journal: UploadJournal | None = None,
        hold: bool = False,
    ) -> None:
        self._blobs = blobs
        self._store = store
        self._patience = patience
        self._cancelled = cancelled
        self._journal = journal
        self._hold = hold
        self._reading = Counter("reading changes", on_progress)
        self._sending = Counter("sending changes", on_progress)
        self._batch: BlobBatch | None = None
        self._pins = contextlib.ExitStack()
        self._pending: dict[BlobKey, int] = {}
        self._pending_files = 0
        self._pending_bytes = 0
        self._noted: list[int] = []
        self._to_note: list[Note] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """What was not made durable is dropped, and nothing is pinned any more."""
        if self._batch is not None:
            self._batch.abandon()
            self._batch = None
        self._pins.close()

    @property
    def files_sent(self) -> int:
        return self._sending.files

    @property
    def bytes_sent(self) -> int:
        return self._sending.bytes

    # -- taking in ---------------------------------------------------------------------------------

    def take(self, found: Found) -> tuple[str, int]:
        """Digest and size. Raises Skip, NotRegularError, OSError, FaultError."""
        if self._cancelled.is_set():
            raise CancelledWorkError
        if found.size > MAX_FILE_BYTES:
            raise Skip(f"larger than {MAX_FILE_BYTES} bytes")
        mark = b"" if self._journal is None else mark_of(found.path, found.facts)
        known = self._known(mark, found)
        if known is not None:
            return known
        fd = open_regular(found.dir_fd, found.name)
        try:
            if hole_bytes(fd, MAX_HOLE_BYTES) > MAX_HOLE_BYTES:
                raise Skip(f"a sparse file with more than {MAX_HOLE_BYTES} bytes of holes")
            if found.base is not None and found.base.size == found.size:
                same = digests.of_chunks(until(self._cancelled, sparse_chunks(fd)))
                if same == found.base.digest:
                    self._reading.add(1, found.size)
                    self._note(Note(mark, same, found.size, found.executable, of_base=True))
                    return same, found.size  # the store has it, whatever its mode is now
                os.lseek(fd, 0, os.SEEK_SET)
            return self._ingest(fd, found, mark)
        finally:
            os.close(fd)

    def _known(self, mark: bytes, found: Found) -> tuple[str, int] | None:
        """What an earlier try has taken in already, and is still here or in the store."""
        seen = self._journal.find(mark) if self._journal is not None else None
        if seen is None:
            return None
        if seen.of_base:
            if found.base is None or found.base.digest != seen.digest:
                return None
        elif not seen.confirmed:
            key = BlobKey(seen.digest, found.executable)
            self._pins.enter_context(self._blobs.pinned((key,)))
            if not self._blobs.has(key):
                return None
            self._noted.append(seen.record)
            self._add(key, seen.size)
        self._reading.add(1, seen.size)
        return seen.digest, seen.size

    def _ingest(self, fd: int, found: Found, mark: bytes) -> tuple[str, int]:
        batch = self._batch = self._batch or self._blobs.batch()
        chunks = until(self._cancelled, sparse_chunks(fd))
        key, size = batch.ingest(chunks, executable=found.executable)
        self._pins.enter_context(self._blobs.pinned((key,)))
        self._note(Note(mark, key.digest, size, found.executable))
        self._reading.add(1, size)
        self._add(key, size)
        return key.digest, size

    def _note(self, note: Note) -> None:
        if self._journal is None:
            return
        self._to_note.append(note)
        if note.of_base and len(self._to_note) >= _COMMIT_FILES:
            self.flush()

    def _add(self, key: BlobKey, size: int) -> None:
        self._pending[key] = size
        self._pending_files += 1  # also those of equal content: each has a note and a pin
        self._pending_bytes += size
        if self._pending_files >= _COMMIT_FILES or self._pending_bytes >= _COMMIT_BYTES:
            self.flush()

    # -- handing on --------------------------------------------------------------------------------

    def flush(self) -> None:
        """What was taken in is durable on the node, and in the store unless that is held back."""
        self._commit()
        self._reading.done()
        self._pending_files = self._pending_bytes = 0
        if not self._hold:
            self.send()

    def finish(self) -> None:
        """As `flush`. A few files are sent at once: `late` gives what has to be made durable here.

        The store has them then, so that nobody has to wait for that.
        """
        few = self._pending_files <= _FEW_FILES and self._pending_bytes <= _FEW_BYTES
        if self._hold or not few:
            self.flush()
            return
        self._reading.done()
        try:
            self.send()
        except BaseException:
            self._commit()  # so that this much is done when it is tried again
            raise

    def late(self) -> BlobBatch | None:
        """Whoever takes it has to commit it, or to abandon it."""
        late, self._batch = self._batch, None
        return late

    def send(self) -> None:
        """Raises FaultError, CancelledWorkError, DamagedBlobError."""
        if self._pending:
            self._patience.ask(self._offer)
            self._sending.done()
        self._write_down()
        if self._journal is not None and self._noted:
            self._journal.confirmed(self._noted, sum(self._pending.values()))
        self._noted.clear()
        self._pending.clear()
        self._pending_files = self._pending_bytes = 0
        self._pins.close()

    def _commit(self) -> None:
        if self._batch is not None:
            with disk("write into the file cache"):
                self._batch.commit()
            self._batch = None
        self._write_down()

    def _write_down(self) -> None:
        if self._journal is not None and self._to_note:
            self._noted += self._journal.took(self._to_note)
        self._to_note.clear()

    def _offer(self) -> None:
        by_digest = {key.digest: key for key in self._pending}
        sizes = {key.digest: size for key, size in self._pending.items()}
        absent = self._store.absent_blobs(sizes)

        def new_blobs() -> Iterable[NewBlob]:
            for digest in absent:
                if self._cancelled.is_set():
                    raise CancelledWorkError
                yield NewBlob(digest, sizes[digest], partial(self._chunks, by_digest[digest]))

        damaged = frozenset(digest for digest, bad in absent.items() if bad)
        try:
            self._store.put_blobs(new_blobs(), lambda _: None, damaged=damaged)
        except WrongContentError as error:
            if self._journal is not None:
                raise DamagedBlobError(str(error)) from error
            raise damaged_fault(error) from error
        self._sending.add(len(absent), sum(sizes[digest] for digest in absent))

    def _chunks(self, key: BlobKey) -> Iterable[bytes]:
        with (
            disk(f"read the changed file {key.digest}"),
            open(self._path(key), "rb", buffering=0) as file,  # noqa: PTH123 - hot
        ):
            yield from until(self._cancelled, read_chunks(file.fileno()))

    def _path(self, key: BlobKey) -> str:
        if self._batch is not None:
            with contextlib.suppress(KeyError):
                return self._batch.path(key)
        return self._blobs.path(key)


def damaged_fault(error: Exception) -> Exception:
    return fault(
        Reason.FILES_CORRUPT, f"The node's own copy of a changed file is damaged: {error}."
    )


def until(cancelled: threading.Event, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """One file may be huge, or pretend to be: a stop is heard in the middle of it."""
    for chunk in chunks:
        if cancelled.is_set():
            raise CancelledWorkError
        yield chunk

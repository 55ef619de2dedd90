"""Blobs from the store into a batch of the node's: small ones by the pack, large ones by pieces.

Small ones are unpacked by other processes where these can read the packs: one interpreter writes
some 40,000 files a second, and holds up the event loop meanwhile. What they find damaged, and all
that lies in no pack, is read here, where other copies are looked for.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from executord.files.cache.blobs import BlobBatch, BlobKey, Blobs, WrongContentError
from executord.files.faults import CancelledWorkError, corrupt, disk
from executord.files.model import digests
from executord.files.progress import Counter
from executord.files.store.large import LargeBlobs
from executord.files.store.pack_index import Location
from executord.files.store.pack_reader import Span, spans
from executord.files.store.pack_writer import SMALL_BYTES
from executord.files.store.store import Store
from executord.files.store.unpackers import PackSpan, UnpackerError, Unpackers
from executord.files.system.directories import read_chunks
from executord.files.system.parallel import side_by_side

WORTH_A_PROCESS = 2000
LARGE_BYTES = 8 << 20
_SPAN_BYTES = 8 << 20
_ROOTS = 64


class Downloads:
    """Blocks; safe in any thread."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._unpackers = Unpackers()
        self._large = LargeBlobs(store, blobs)
        self.roots: deque[str] = deque(maxlen=_ROOTS)

    def note_root(self, tree: str) -> None:
        """What is asked for later may lie below it: where it is missing, its hint is looked at."""
        if tree not in self.roots:
            self.roots.append(tree)

    def close(self) -> None:
        self._unpackers.close()

    def into(
        self,
        batch: BlobBatch,
        sizes: Mapping[BlobKey, int],
        counter: Counter,
        cancelled: threading.Event,
    ) -> None:
        """All of them, in no promised order. Raises FaultError, CancelledWorkError."""
        small: dict[BlobKey, int] = {}
        medium: list[BlobKey] = []
        large: list[BlobKey] = []
        for key, size in sizes.items():
            if key.digest == digests.EMPTY:
                with disk("write into the file cache"):
                    batch.write(key, size, ())
                counter.add(1, 0)
            elif size <= SMALL_BYTES:
                small[key] = size
            elif size <= LARGE_BYTES:
                medium.append(key)
            else:
                large.append(key)
        _Small(self._store, self._unpackers, batch, counter, cancelled).fetch(
            small, self._locate(small)
        )

        def one(key: BlobKey) -> None:
            _stop_if(cancelled)
            with disk("write into the file cache"):
                batch.write(key, sizes[key], self._chunks(key, sizes[key], cancelled))
            counter.add(1, sizes[key])

        for _ in side_by_side(self._store.parallelism, medium, one):
            pass
        for key in large:
            twin = self._local(BlobKey(key.digest, not key.executable))
            if twin is not None:
                with disk("write into the file cache"):
                    batch.write(key, sizes[key], _until(cancelled, twin))
                counter.add(1, sizes[key])
            else:
                self._large.into(batch, key, sizes[key], counter, cancelled)

    def _locate(self, keys: Iterable[BlobKey]) -> dict[str, Location]:
        wanted = {key.digest for key in keys}
        located = self._store.locate(wanted)
        for root in reversed(tuple(self.roots)):
            if len(located) == len(wanted):
                break
            self._store.learn(root)
            located |= self._store.locate(wanted - located.keys())
        return located

    def _chunks(self, key: BlobKey, size: int, cancelled: threading.Event) -> Iterator[bytes]:
        twin = self._local(BlobKey(key.digest, not key.executable))
        return _until(cancelled, twin or self._store.blob(key.digest, size))

    def _local(self, key: BlobKey) -> Iterator[bytes] | None:
        try:
            file = open(self._blobs.path(key), "rb", buffering=0)  # noqa: PTH123, SIM115 - handed on
        except FileNotFoundError:
            return None

        def chunks() -> Iterator[bytes]:
            with file:
                yield from read_chunks(file.fileno())

        return chunks()


class _Small:
    """The small blobs of one batch."""

    def __init__(
        self,
        store: Store,
        unpackers: Unpackers,
        batch: BlobBatch,
        counter: Counter,
        cancelled: threading.Event,
    ) -> None:
        self._store = store
        self._unpackers = unpackers
        self._batch = batch
        self._counter = counter
        self._cancelled = cancelled
        self._keys: dict[str, list[BlobKey]] = {}

    def fetch(self, sizes: Mapping[BlobKey, int], located: Mapping[str, Location]) -> None:
        by_digest: dict[str, int] = {}
        for key, size in sizes.items():
            if by_digest.setdefault(key.digest, size) != size:
                raise corrupt(f"{key.digest} is given two sizes.")
            self._keys.setdefault(key.digest, []).append(key)
        packed = {digest: at for digest, at in located.items() if at.size == by_digest.get(digest)}
        done: set[str] = set()
        if len(packed) >= WORTH_A_PROCESS:
            cut = spans(packed, _SPAN_BYTES)
            for _, unpacked in side_by_side(self._unpackers.number, cut, self._unpack):
                done.update(unpacked)
        left = {digest: size for digest, size in by_digest.items() if digest not in done}
        for digest, data in self._store.small_blobs(left):
            _stop_if(self._cancelled)
            with disk("write into the file cache"):
                for key in self._keys[digest]:
                    self._batch.write_small(key, data)
            self._counter.add(len(self._keys[digest]), len(data) * len(self._keys[digest]))

    def _unpack(self, span: Span) -> Sequence[str]:
        """The digests whose blobs are made now; the others are for the ordinary way."""
        _stop_if(self._cancelled)
        path = self._store.pack_path(span.pack)
        if path is None:
            return ()
        wanted = [(key, at) for digest, at in span.objects for key in self._keys[digest]]
        paths = [self._batch.new_path() for _ in wanted]
        objects = [
            (
                at.offset,
                at.size,
                bytes.fromhex(digests.hex_of(key.digest)),
                path.rpartition("/")[2],
                self._batch.mode_of(key),
            )
            for (key, at), path in zip(wanted, paths, strict=True)
        ]
        try:
            with disk("write into the file cache"):
                inodes = self._unpackers.unpack(
                    PackSpan(path, span.start, span.length),
                    self._batch.folder,
                    owner=self._batch.owner,
                    objects=objects,
                    cancelled=self._cancelled,
                )
        except UnpackerError:
            return ()
        made: dict[str, bool] = {}
        size = 0
        for (key, at), path, inode in zip(wanted, paths, inodes, strict=True):
            made[key.digest] = bool(inode) and made.get(key.digest, True)
            if inode:
                self._batch.adopt(key, at.size, path, inode)
                size += at.size
        self._counter.add(sum(1 for inode in inodes if inode), size)
        return [digest for digest, whole in made.items() if whole]


def _stop_if(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise CancelledWorkError


def _until(cancelled: threading.Event, chunks: Iterable[bytes]) -> Iterator[bytes]:
    try:
        for chunk in chunks:
            _stop_if(cancelled)
            yield chunk
    except WrongContentError as error:
        raise corrupt(f"A file in the store is damaged: {error}.") from error

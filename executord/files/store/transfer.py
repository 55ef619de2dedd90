"""From the store to the node: trees and blobs, many at a time, each content once.

Whoever needs a blob first downloads it for everybody; the others wait for it. One who gives up, or
fails, hands back what he had claimed, and a waiter takes it over: nobody's end is another's.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from executord.files.cache.blobs import BlobBatch, BlobKey, Blobs
from executord.files.cache.objects import Revisions, Trees
from executord.files.faults import CancelledWorkError, disk
from executord.files.model import closure, digests
from executord.files.model.trees import Tree
from executord.files.progress import Counter
from executord.files.store.store import Store, decoded
from executord.files.system.directories import read_chunks
from executord.files.system.parallel import side_by_side
from executord.ports import Revision

_COMMIT_FILES = 4096
_COMMIT_BYTES = 512 << 20
_SLICE_FILES = 32
_SLICE_BYTES = 8 << 20
_WAIT_SECONDS = 0.2

_Claims = dict[BlobKey, Future[None]]


class Fetcher:
    """All of it blocks; any number of threads may fetch at once."""

    def __init__(self, *, store: Store, blobs: Blobs, trees: Trees, revisions: Revisions) -> None:
        self._store = store
        self._blobs = blobs
        self._trees = trees
        self._revisions = revisions
        self._claims: dict[BlobKey, Future[None]] = {}
        self._lock = threading.Lock()

    # -- small objects -----------------------------------------------------------------------------

    def revision(self, digest: str) -> Revision:
        """From the node if it is here. Raises REVISION_NOT_FOUND and the store's faults."""
        known = self._revisions.get(digest)
        if known is not None:
            return known
        data = self._store.revision_bytes(digest)
        with disk(f"keep the revision {digest}"):
            self._revisions.put(digest, data)
        found = self._revisions.get(digest)
        return found if found is not None else self._store.revision(digest)

    def tree(self, digest: str) -> Tree:
        return self.trees((digest,))[digest]

    def trees(self, wanted: Iterable[str]) -> dict[str, Tree]:
        found: dict[str, Tree] = {}
        missing: list[str] = []
        for digest in wanted:
            tree = self._trees.get(digest)
            if tree is None:
                missing.append(digest)
            else:
                found[digest] = tree
        if missing:
            found.update(self._fetch_trees(missing))
        return found

    def closure(self, root: str, cancelled: threading.Event) -> closure.Closure:
        return closure.load(root, self.trees, cancelled)

    def _fetch_trees(self, missing: Sequence[str]) -> dict[str, Tree]:
        fetched = dict(side_by_side(self._store.parallelism, missing, self._store.tree_bytes))
        found = {digest: decoded(digest, data) for digest, data in fetched.items()}
        with disk("keep trees"):
            self._trees.put(fetched)
        return found

    # -- blobs -------------------------------------------------------------------------------------

    def blobs(
        self, sizes: Mapping[BlobKey, int], counter: Counter, cancelled: threading.Event
    ) -> None:
        """All of them are here on return, as long as the caller has pinned them.

        Raises FILES_CORRUPT, DISK_FULL, the store's faults; CancelledWorkError when asked to stop.
        """
        todo = list(sizes)
        while todo:
            mine, others = self._claim(todo)
            try:
                missing = self._blobs.missing(mine)
                self._download({key: sizes[key] for key in missing}, mine, counter, cancelled)
            finally:
                self._hand_back(mine, mine)
            for future in others:
                _wait_for(future, cancelled)
            todo = self._blobs.missing(todo) if others else []

    def _claim(self, keys: Sequence[BlobKey]) -> tuple[_Claims, list[Future[None]]]:
        mine: _Claims = {}
        others: list[Future[None]] = []
        with self._lock:
            for key in keys:
                taken = self._claims.get(key)
                if taken is None:
                    self._claims[key] = mine[key] = Future()
                else:
                    others.append(taken)
        return mine, others

    def _hand_back(self, keys: Iterable[BlobKey], mine: _Claims) -> None:
        released = []
        with self._lock:
            for key in keys:
                if key in mine and self._claims.get(key) is mine[key]:
                    del self._claims[key]
                    released.append(mine[key])
        for future in released:
            future.set_result(None)

    def _download(
        self,
        sizes: Mapping[BlobKey, int],
        mine: _Claims,
        counter: Counter,
        cancelled: threading.Event,
    ) -> None:
        batch: list[BlobKey] = []
        size = 0
        for key, key_bytes in sizes.items():
            batch.append(key)
            size += key_bytes
            if len(batch) >= _COMMIT_FILES or size >= _COMMIT_BYTES:
                self._download_batch(batch, sizes, counter, cancelled)
                self._hand_back(batch, mine)
                batch, size = [], 0
        if batch:
            self._download_batch(batch, sizes, counter, cancelled)

    def _download_batch(
        self,
        keys: Sequence[BlobKey],
        sizes: Mapping[BlobKey, int],
        counter: Counter,
        cancelled: threading.Event,
    ) -> None:
        with disk("write into the file cache"):
            batch = self._blobs.batch()

        def one_slice(part: Sequence[BlobKey]) -> None:
            for key in part:
                if cancelled.is_set():
                    raise CancelledWorkError
                self._download_one(batch, key, sizes[key])
                counter.add(1, sizes[key])

        try:
            for _ in side_by_side(self._store.parallelism, list(_slices(keys, sizes)), one_slice):
                pass
            with disk("write into the file cache"):
                batch.commit()
        except BaseException:
            batch.abandon()
            raise

    def _download_one(self, batch: BlobBatch, key: BlobKey, size: int) -> None:
        twin = BlobKey(key.digest, not key.executable)
        chunks: Iterable[bytes] | None = self._local(twin)
        if chunks is None:
            chunks = () if key.digest == digests.EMPTY else self._store.blob(key.digest, size)
        with disk("write into the file cache"):
            batch.write(key, size, chunks)

    def _local(self, key: BlobKey) -> Iterator[bytes] | None:
        try:
            file = open(self._blobs.path(key), "rb", buffering=0)  # noqa: PTH123, SIM115 - handed on
        except FileNotFoundError:
            return None

        def chunks() -> Iterator[bytes]:
            with file:
                yield from read_chunks(file.fileno())

        return chunks()


def _slices(keys: Sequence[BlobKey], sizes: Mapping[BlobKey, int]) -> Iterator[list[BlobKey]]:
    part: list[BlobKey] = []
    size = 0
    for key in keys:
        part.append(key)
        size += sizes[key]
        if len(part) >= _SLICE_FILES or size >= _SLICE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _wait_for(future: Future[None], cancelled: threading.Event) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            future.result(timeout=_WAIT_SECONDS)
            return
        if cancelled.is_set():
            raise CancelledWorkError

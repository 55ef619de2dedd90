"""From the store to the node: trees and blobs, many at a time, each content once.

Whoever needs a blob first downloads it for everybody; the others wait for it. One who gives up, or
fails, hands back what he had claimed, and a waiter takes it over: nobody's end is another's.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.objects import Revisions, Trees
from executord.files.faults import CancelledWorkError, disk
from executord.files.model import closure
from executord.files.model.trees import Tree
from executord.files.progress import Counter
from executord.files.store.downloads import Downloads
from executord.files.store.store import Store, decoded
from executord.ports import Revision

_COMMIT_FILES = 32_768
_COMMIT_BYTES = 1 << 30
_WAIT_SECONDS = 0.2


class Fetcher:
    """All of it blocks; any number of threads may fetch at once."""

    def __init__(self, *, store: Store, blobs: Blobs, trees: Trees, revisions: Revisions) -> None:
        self._store = store
        self._blobs = blobs
        self._trees = trees
        self._revisions = revisions
        self._claims: dict[BlobKey, Future[None]] = {}
        self._lock = threading.Lock()
        self._downloads = Downloads(store, blobs)

    def close(self) -> None:
        """Ends the processes that help; those at work see it in their own way."""
        self._downloads.close()

    # -- small objects -----------------------------------------------------------------------------

    def revision(self, digest: str) -> Revision:
        """From the node if it is here. Raises REVISION_NOT_FOUND and the store's faults."""
        found = self._revisions.get(digest) or self._fetch_revision(digest)
        self._downloads.note_root(found.tree)
        return found

    def _fetch_revision(self, digest: str) -> Revision:
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
        self._downloads.note_root(root)
        return closure.load(root, self.trees, cancelled)

    def _fetch_trees(self, missing: Sequence[str]) -> dict[str, Tree]:
        for digest in missing:
            if digest in self._downloads.roots:
                self._store.learn(digest)
        fetched = self._store.trees_bytes(missing)
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
            others: list[Future[None]] = []
            left: list[BlobKey] = []
            for part in _parts(todo, sizes):
                mine, claim, taken = self._claim(part)
                left += taken.keys()
                others += taken.values()
                try:
                    missing = self._blobs.missing(mine)
                    if missing:
                        self._download(missing, sizes, counter, cancelled)
                finally:
                    self._hand_back(mine, claim)
            for future in dict.fromkeys(others):
                _wait_for(future, cancelled)
            todo = self._blobs.missing(left)

    def _claim(
        self, keys: Sequence[BlobKey]
    ) -> tuple[list[BlobKey], Future[None], dict[BlobKey, Future[None]]]:
        """What is mine to fetch, under which claim; and what others fetch, under theirs."""
        mine: list[BlobKey] = []
        claim: Future[None] = Future()
        taken: dict[BlobKey, Future[None]] = {}
        with self._lock:
            for key in keys:
                other = self._claims.setdefault(key, claim)
                if other is claim:
                    mine.append(key)
                else:
                    taken[key] = other
        return mine, claim, taken

    def _hand_back(self, mine: Iterable[BlobKey], claim: Future[None]) -> None:
        with self._lock:
            for key in mine:
                del self._claims[key]
        claim.set_result(None)

    def _download(
        self,
        keys: Sequence[BlobKey],
        sizes: Mapping[BlobKey, int],
        counter: Counter,
        cancelled: threading.Event,
    ) -> None:
        with disk("write into the file cache"):
            batch = self._blobs.batch()
        try:
            self._downloads.into(batch, {key: sizes[key] for key in keys}, counter, cancelled)
            with disk("write into the file cache"):
                batch.commit()
        except BaseException:
            batch.abandon()
            raise


def _parts(keys: Sequence[BlobKey], sizes: Mapping[BlobKey, int]) -> Iterator[list[BlobKey]]:
    part: list[BlobKey] = []
    size = 0
    for key in keys:
        part.append(key)
        size += sizes[key]
        if len(part) >= _COMMIT_FILES or size >= _COMMIT_BYTES:
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

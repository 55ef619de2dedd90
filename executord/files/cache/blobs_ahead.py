"""All blobs of a tree brought onto the node, and nothing made of them."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.objects import Trees
from executord.files.faults import CancelledWorkError
from executord.files.model.closure import key_of
from executord.files.model.trees import Tree
from executord.files.model.walk import GetTrees, walk
from executord.files.progress import Counter
from executord.files.store.transfer import Fetcher
from executord.files.system import disk as disks
from executord.ports import OnProgress

_PIECE_BLOBS = 2048


@dataclass(frozen=True, slots=True)
class Gathered:
    """`files` and `bytes` are those of the whole tree, of which some had to be fetched."""

    files: int
    bytes: int
    files_fetched: int
    bytes_fetched: int


class _NotHereError(Exception):
    """A tree that this node does not have."""


class BlobsAhead:
    """Blocks; safe in any thread. `check_room` raises FaultError where so many bytes and inodes
    would be too much; `check` takes bad blobs among those here away.
    """

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        blobs: Blobs,
        trees: Trees,
        check_room: Callable[[int, int], None],
        check: Callable[[Iterable[BlobKey], threading.Event], None],
    ) -> None:
        self._fetcher = fetcher
        self._blobs = blobs
        self._trees = trees
        self._check_room = check_room
        self._check = check

    def are_here(self, tree: str, cancelled: threading.Event) -> bool:
        """Asks nobody. Raises OSError, CancelledWorkError."""

        def local(wanted: Sequence[str]) -> dict[str, Tree]:
            found = {}
            for digest in wanted:
                known = self._trees.get(digest)
                if known is None:
                    raise _NotHereError(digest)
                found[digest] = known
            return found

        try:
            pieces = _pieces(tree, local, cancelled)
            return not any(self._blobs.missing(piece.blobs) for piece in pieces)
        except _NotHereError:
            return False

    def gather(self, tree: str, on_progress: OnProgress, cancelled: threading.Event) -> Gathered:
        """Raises FaultError, OSError, CancelledWorkError."""
        files = size = absent = absent_bytes = allocated = 0
        for piece in _pieces(tree, self._fetcher.trees, cancelled):
            files += piece.files
            size += piece.bytes
            missing = [piece.blobs[key] for key in self._blobs.missing(piece.blobs)]
            absent += len(missing)
            absent_bytes += sum(missing)
            allocated += sum(disks.allocated(each) for each in missing)
        if absent:
            self._check_room(allocated, absent)
        counter = Counter(
            "fetching files", on_progress, files_total=absent, bytes_total=absent_bytes
        )
        fetched = fetched_bytes = 0
        for piece in _pieces(tree, self._fetcher.trees, cancelled):
            with self._blobs.pinned(piece.blobs):
                self._check(piece.blobs, cancelled)
                wanted = {key: piece.blobs[key] for key in self._blobs.missing(piece.blobs)}
                if wanted:
                    self._fetcher.blobs(wanted, counter, cancelled)
            fetched += len(wanted)
            fetched_bytes += sum(wanted.values())
        counter.done()
        return Gathered(files, size, fetched, fetched_bytes)


@dataclass(slots=True)
class _Piece:
    files: int
    bytes: int
    blobs: dict[BlobKey, int]


def _pieces(tree: str, get: GetTrees, cancelled: threading.Event) -> Iterator[_Piece]:
    """Equal files of one piece are one blob."""
    piece = _Piece(0, 0, {})
    for directory in walk(tree, get, cancelled):
        for entry in directory.tree:
            if entry.is_directory:
                continue
            piece.files += 1
            if entry.is_file:
                piece.bytes += entry.size
                piece.blobs[key_of(entry)] = entry.size
            if len(piece.blobs) >= _PIECE_BLOBS:
                yield piece
                piece = _Piece(0, 0, {})
                if cancelled.is_set():
                    raise CancelledWorkError
    yield piece

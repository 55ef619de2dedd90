"""Filling a run's directory straight from blobs, a piece at a time: fetch, place, go on.

No more than a piece of the tree is held, so a tree of a million files takes no more memory than
one of ten thousand.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from executord.core.eviction import Space
from executord.core.reasons import Reason
from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.promises import Promise
from executord.files.cache.sweeper import Sweeper
from executord.files.faults import CancelledWorkError, corrupt, disk, fault
from executord.files.model.closure import key_of
from executord.files.model.trees import Entry, totals
from executord.files.progress import Counter
from executord.files.store.transfer import Fetcher
from executord.files.system import disk as disks
from executord.files.system.directories import Cursor
from executord.files.workspace.modes.full import files_of, marks_of
from executord.files.workspace.modes.marks import MarksWriter
from executord.files.workspace.modes.placing import Place, PlacedFiles, Placer
from executord.files.workspace.modes.tree_steps import Enter, Leave, steps
from executord.ports import OnProgress

_PIECE_STEPS = 8192
_PIECE_BLOBS = 2048
_PIECE_BYTES = 256 << 20
_DIRECTORY_MODE = 0o755
_LOOK_UP_EVERY = 256


@dataclass(frozen=True, slots=True)
class Filled:
    """`files` and `bytes` are those of the whole tree, of which some had to be fetched."""

    files: int
    bytes: int
    files_fetched: int
    bytes_fetched: int


@dataclass(frozen=True, slots=True)
class _Make:
    entry: Entry
    number: int


@dataclass(slots=True)
class _Piece:
    steps: list[Enter | _Make | Leave] = field(default_factory=list)
    blobs: dict[BlobKey, int] = field(default_factory=dict)
    bytes: int = 0

    def add(self, step: Enter | _Make | Leave) -> None:
        self.steps.append(step)
        if isinstance(step, _Make) and step.entry.is_file:
            key = key_of(step.entry)
            if key not in self.blobs:
                self.blobs[key] = step.entry.size
                self.bytes += step.entry.size

    @property
    def is_enough(self) -> bool:
        return (
            len(self.steps) >= _PIECE_STEPS
            or len(self.blobs) >= _PIECE_BLOBS
            or self.bytes >= _PIECE_BYTES
        )


class Filling:
    """Blocks; safe in any thread. `cache` is where the blobs are; `owner` is the run's user and
    group. `check` takes bad blobs among those here away, before anything is made of them.
    """

    def __init__(
        self,
        *,
        cache: Path,
        fetcher: Fetcher,
        blobs: Blobs,
        sweeper: Sweeper,
        owner: tuple[int, int],
        check: Callable[[Iterable[BlobKey], threading.Event], None] | None = None,
    ) -> None:
        self._check = check
        self._cache = cache
        self._fetcher = fetcher
        self._blobs = blobs
        self._sweeper = sweeper
        self._owner = owner

    def fill(
        self,
        home: Path,
        tree: str,
        placer: Placer,
        on_progress: OnProgress,
        cancelled: threading.Event,
        *,
        promise: Promise | None = None,
    ) -> Filled:
        """Everything is durable on return. Raises FaultError, CancelledWorkError; whoever made
        `home` throws it away then.
        """
        size, entries = totals(self._fetcher.tree(tree))
        self._make_room(home, placer.new_bytes(size), entries + 2, promise)
        counter = Counter("making files", on_progress, files_total=entries, bytes_total=size)
        with ExitStack() as stack, disk("make the run's files"):
            marks = stack.enter_context(MarksWriter(marks_of(home)))
            top = files_of(home)
            top.mkdir(mode=_DIRECTORY_MODE)
            cursor = stack.enter_context(Cursor(top))
            placed = placer.begin(entries)
            work = _Work(self, cursor, marks, placed, counter=counter, cancelled=cancelled)
            for piece in _pieces(tree, self._fetcher):
                with self._blobs.pinned(piece.blobs):
                    if self._check is not None:
                        self._check(piece.blobs, cancelled)
                    self._fetch(piece.blobs, work)
                    work.carry_out(piece)
                if promise is not None:
                    taken = Space(placer.new_bytes(piece.bytes), len(piece.steps))
                    self._sweeper.promises.kept(promise, taken)
            disks.sync_filesystem(home)
        counter.done()
        return Filled(work.files, work.bytes, work.files_fetched, work.bytes_fetched)

    def _make_room(
        self, home: Path, new_bytes: int, new_inodes: int, promise: Promise | None
    ) -> None:
        """The cache gives way where it is on the same disk; what else is missing is a fault."""
        if home.stat().st_dev == self._cache.stat().st_dev:
            self._sweeper.make_room(new_bytes, new_inodes, promise)
        facts = os.statvfs(home)
        if not facts.f_blocks:
            return  # memory alone does not say how much there is
        free_bytes = facts.f_bavail * facts.f_frsize
        if new_bytes > free_bytes:
            raise fault(
                Reason.DISK_FULL,
                f"The run's files need {new_bytes} bytes of their own; {free_bytes} are free "
                f"under {home.parent}.",
                needed_bytes=new_bytes,
                free_bytes=free_bytes,
            )
        if facts.f_files and new_inodes > facts.f_favail:
            raise fault(
                Reason.DISK_FULL,
                f"The run's files need {new_inodes} inodes; {facts.f_favail} are free under "
                f"{home.parent}.",
                needed_inodes=new_inodes,
                free_inodes=facts.f_favail,
            )

    def _fetch(self, wanted: Mapping[BlobKey, int], work: "_Work") -> None:
        """What is not here, and is pinned."""
        sizes = {key: wanted[key] for key in self._blobs.missing(wanted)}
        if sizes:
            allocated = sum(disks.allocated(size) for size in sizes.values())
            self._sweeper.make_room(allocated, len(sizes))
            self._fetcher.blobs(sizes, Counter("fetching files", None), work.cancelled)
            work.files_fetched += len(sizes)
            work.bytes_fetched += sum(sizes.values())

    def blob(self, key: BlobKey, size: int, work: "_Work") -> str:
        """Its path, fetched if something took it away."""
        if not self._blobs.has(key):
            self._fetch({key: size}, work)
        return self._blobs.path(key)

    def own(self, name: str | int, dir_fd: int | None = None) -> None:
        disks.chown_if_needed(name, self._owner, dir_fd=dir_fd)


def _pieces(tree: str, fetcher: Fetcher) -> Iterator[_Piece]:
    piece = _Piece()
    for step in steps(tree, fetcher.trees):
        piece.add(step)
        if isinstance(step, Leave):
            continue
        for position, entry in enumerate(step.entries):
            if entry.is_directory:
                continue
            piece.add(_Make(entry, step.first + position))
            if piece.is_enough:
                yield piece
                piece = _Piece()
    yield piece


class _Work:
    """The directory as far as it is made: the cursor stands where the next file belongs."""

    def __init__(
        self,
        filling: Filling,
        cursor: Cursor,
        marks: MarksWriter,
        placed: PlacedFiles,
        *,
        counter: Counter,
        cancelled: threading.Event,
    ) -> None:
        self._filling = filling
        self._cursor = cursor
        self._marks = marks
        self._placed = placed
        self._counter = counter
        self._paths: list[str] = []
        self.cancelled = cancelled
        self.files = self.bytes = self.files_fetched = self.bytes_fetched = 0

    def carry_out(self, piece: _Piece) -> None:
        for number, step in enumerate(piece.steps):
            if number % _LOOK_UP_EVERY == 0 and self.cancelled.is_set():
                raise CancelledWorkError
            if isinstance(step, Enter):
                self._enter(step.name)
            elif isinstance(step, Leave):
                self._leave()
            else:
                self._make(step)

    def _enter(self, name: str) -> None:
        above = self._paths[-1] if self._paths else ""
        if name:
            os.mkdir(name, _DIRECTORY_MODE, dir_fd=self._cursor.fd)
            self._cursor.enter(name)
            self._counter.add(1, 0)
        os.fchmod(self._cursor.fd, _DIRECTORY_MODE)
        self._filling.own(self._cursor.fd)
        self._paths.append(f"{above}{name}/" if name else "")

    def _leave(self) -> None:
        self._paths.pop()
        if self._paths:
            self._cursor.leave()

    def _make(self, step: _Make) -> None:
        entry, dir_fd = step.entry, self._cursor.fd
        self.files += 1
        self.bytes += entry.size if entry.is_file else 0
        if entry.is_file:
            read_only = self._place(Place(dir_fd, f"{self._paths[-1]}{entry.name}", entry))
            facts = os.stat(entry.name, dir_fd=dir_fd, follow_symlinks=False)
            self._marks.write(step.number, facts, read_only=read_only)
        else:
            os.symlink(entry.target, entry.name, dir_fd=dir_fd)
            self._filling.own(entry.name, dir_fd)
        self._counter.add(1, entry.size)

    def _place(self, place: Place) -> bool:
        """A blob that something takes away right now, against its pin, is fetched once more."""
        key, size = key_of(place.entry), place.entry.size
        try:
            return self._placed.place(self._filling.blob(key, size, self), place)
        except FileNotFoundError:
            path = self._filling.blob(key, size, self)
        try:
            return self._placed.place(path, place)
        except FileNotFoundError as error:
            raise corrupt(f"The file content {key.digest} vanishes from the cache.") from error

"""A tree as a run would see it, compared with what its digests promise: every name, kind, link
target, owner and executable bit, and the bytes of every file.

A file is known by its inode: one whose bytes were found right is not read again, whichever
snapshot, layer or blob leads to it.
"""

import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from executord.files.cache.blobs import Blobs
from executord.files.cache.inodes import Inodes
from executord.files.cache.merged_view import MergedView, Shown
from executord.files.faults import CancelledWorkError
from executord.files.model.closure import key_of
from executord.files.model.trees import Entry, Tree
from executord.files.progress import Counter
from executord.files.system.directories import open_regular
from executord.files.system.hashing import digest_of

_HASHERS = 2
_LARGE_BYTES = 1 << 20
_MOST_DAMAGES = 10_000
_DIRECTORY_MODE = 0o755
_MODES = (0o644, 0o755)
_LOOK_UP_EVERY = 64

AnyLayer = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """`layer` is the directory (0 is the top one) that has to go, -1 where any of them may be it.

    `entry` is set where a file has other bytes than its digest promises; `inode` is that file's
    and `hashes_to` what it holds, "" where it was not read to its end.
    """

    path: str
    what: str
    layer: int
    entry: Entry | None = None
    inode: int = 0
    hashes_to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a check is done. `known` are the inodes that need not be read; `rest` is told the bytes
    that were read, and may sleep.
    """

    known: Inodes
    counter: Counter
    cancelled: threading.Event
    rest: Callable[[int], None]


class TreeCheck:
    """Blocks. One check; `found_right` is told the inode of every file that was read.

    `lowers` show the tree `root`, top first. `top_only` looks at what the first of them has itself
    and leaves out what only those below could show; for when they are known to be right. Files
    are links to blobs, with the mode and owner of those, or copies, of the run's user.
    """

    def __init__(
        self,
        *,
        lowers: Sequence[Path],
        root: str,
        tree_of: Callable[[str], Tree],
        owner: tuple[int, int],
        blobs: Blobs,
        way: Way,
        found_right: Callable[[int], None],
        top_only: bool = False,
    ) -> None:
        self._lowers = lowers[:1] if top_only else lowers
        self._root = root
        self._tree_of = tree_of
        self._owners = {owner, blobs.owner}
        self._blobs = blobs
        self._way = way
        self._found_right = found_right
        self._top_only = top_only
        self._path: list[str] = []
        self._damages: list[Damage] = []
        self._seen = 0
        self._under_way: set[Future[None]] = set()
        self.trees: set[str] = set()
        self.files = array("q")

    def run(self) -> list[Damage]:
        """Empty where all is right. Raises OSError, MovedError, FaultError, CancelledWorkError."""
        with (
            ThreadPoolExecutor(_HASHERS, thread_name_prefix="files-check") as pool,
            MergedView(self._lowers) as view,
        ):
            self._pool, self._view = pool, view
            self._walk()
            for future in self._under_way:
                future.result()
        return self._damages

    def _walk(self) -> None:
        view = self._view
        wrong = self._wrong_directory(os.fstat(view.fd(view.top)))
        if wrong:
            self._note(".", wrong, view.top)
        stack = [self._directory(self._root)]
        while stack:
            if len(self._damages) >= _MOST_DAMAGES:
                return
            entry = next(stack[-1], None)
            if entry is not None:
                view.enter(entry.name)
                self._path.append(entry.name)
                stack.append(self._directory(entry.digest))
                continue
            stack.pop()
            if stack:
                view.leave()
                self._path.pop()

    def _directory(self, digest: str) -> Iterator[Entry]:
        """Looks at all that is in it; gives the directories to go into."""
        self.trees.add(digest)
        listing = self._view.listing()
        deeper = []
        for entry in self._tree_of(digest):
            self._look_up()
            shown = listing.pop(entry.name, None)
            if shown is None:
                if not self._top_only:
                    self._note(entry.name, "is missing", AnyLayer)
            elif self._is_right(entry, shown) and entry.is_directory:
                deeper.append(entry)
        for name, shown in listing.items():
            self._note(name, "does not belong there", shown.layer)
        return iter(deeper)

    def _look_up(self) -> None:
        self._seen += 1
        if self._seen % _LOOK_UP_EVERY == 0 and self._way.cancelled.is_set():
            raise CancelledWorkError

    def _is_right(self, entry: Entry, shown: Shown) -> bool:
        if entry.is_directory:
            is_directory = stat.S_ISDIR(shown.facts.st_mode)
            wrong = self._wrong_directory(shown.facts) if is_directory else "is no directory"
        elif entry.is_file:
            wrong = self._wrong_file(entry, shown)
        else:
            wrong = self._wrong_link(entry, shown)
        if wrong:
            self._note(entry.name, wrong, shown.layer)
        return not wrong

    def _wrong_directory(self, facts: os.stat_result) -> str:
        if stat.S_IMODE(facts.st_mode) != _DIRECTORY_MODE:
            return f"has mode {stat.S_IMODE(facts.st_mode):o}"
        return self._wrong_owner(facts)

    def _wrong_owner(self, facts: os.stat_result) -> str:
        if (facts.st_uid, facts.st_gid) not in self._owners:
            return f"belongs to {facts.st_uid}:{facts.st_gid}"
        return ""

    def _wrong_link(self, entry: Entry, shown: Shown) -> str:
        if not stat.S_ISLNK(shown.facts.st_mode):
            return "is no link"
        target = os.readlink(entry.name, dir_fd=self._view.fd(shown.layer))
        self._way.counter.add(1, entry.size)
        return "" if target == entry.target else "leads elsewhere"

    def _wrong_file(self, entry: Entry, shown: Shown) -> str:
        facts = shown.facts
        if not stat.S_ISREG(facts.st_mode):
            return "is no file"
        key = key_of(entry)
        self.files.append(mark_of(key, entry.size))
        mode = stat.S_IMODE(facts.st_mode)
        wrong = []
        if mode not in (self._blobs.mode_of(key), _MODES[key.executable]):
            wrong.append(f"has mode {mode:o}")
        if owner := self._wrong_owner(facts):
            wrong.append(owner)
        if facts.st_size != entry.size:
            wrong.append(f"has {facts.st_size} instead of {entry.size} bytes")
        elif facts.st_ino not in self._way.known:
            self._read(entry, shown, " and ".join(wrong))
            return ""
        if wrong:
            self._bad_file(entry, shown, " and ".join(wrong), hashes_to="")
        else:
            self._way.counter.add(1, entry.size)
        return ""

    def _read(self, entry: Entry, shown: Shown, wrong: str) -> None:
        """`wrong` is what is known to be besides its content."""
        path = "/".join((*self._path, entry.name))
        try:
            fd = open_regular(self._view.fd(shown.layer), entry.name)
        except PermissionError:
            if not wrong:
                raise
            self._bad_file(entry, shown, wrong, hashes_to="")
            return
        if entry.size < _LARGE_BYTES:
            self._compare(fd, path, entry, shown, wrong)
            return
        while len(self._under_way) >= 2 * _HASHERS:
            done = {future for future in self._under_way if future.done()}
            self._under_way -= done
            for future in done:
                future.result()
            if not done:
                next(iter(self._under_way)).exception()  # waits for it
        self._under_way.add(self._pool.submit(self._compare, fd, path, entry, shown, wrong))

    def _compare(self, fd: int, path: str, entry: Entry, shown: Shown, wrong: str) -> None:
        way = self._way
        found, what = "", "has other content"
        try:
            found = digest_of(fd, entry.size, cancelled=way.cancelled, rest=way.rest)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
        finally:
            os.close(fd)
        way.counter.add(1, entry.size)
        if found != entry.digest:
            wrong = f"{wrong} and {what}" if wrong else what
        if wrong:
            self._bad_file(entry, shown, wrong, hashes_to=found, path=path)
        else:
            self._found_right(shown.facts.st_ino)

    def _bad_file(
        self, entry: Entry, shown: Shown, what: str, *, hashes_to: str, path: str = ""
    ) -> None:
        self._damages.append(
            Damage(
                path=path or "/".join((*self._path, entry.name)),
                what=what,
                layer=shown.layer,
                entry=entry,
                inode=shown.facts.st_ino,
                hashes_to=hashes_to,
            )
        )

    def _note(self, name: str, what: str, layer: int) -> None:
        self._damages.append(Damage(path="/".join((*self._path, name)), what=what, layer=layer))


def mark_of(key: tuple[str, bool], size: int) -> int:
    """Short, and good enough to tell records of one tree from those of another."""
    return hash((key[0], bool(key[1]), size))

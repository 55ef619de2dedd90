"""Deleting what was thrown away, in a thread of its own and in small steps.

Unlinking a file of gigabytes, or a hundred thousand small ones, keeps a filesystem's journal busy
for so long that everybody else's syncs wait. So files go a few at a time, large ones are cut short
step by step first, the disk's scheduler is asked to let everybody else go first, and while a run
is being prepared hardly anything is deleted at all.
"""

import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from executord.core.eviction import NOTHING, Space
from executord.files.cache.layout import Layout
from executord.files.cache.measure import SECTOR_BYTES
from executord.files.system.directories import remove_tree
from executord.files.system.priority import set_idle

log = structlog.get_logger(__name__)

STEP_FILES = 32
STEP_BYTES = 32 << 20
_REST_SECONDS = 0.004
_BUSY_LOOK_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 1.0


class RightOfWay:
    """Who must not be held up. `busy` while somebody is inside."""

    def __init__(self) -> None:
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        return self._inside > 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1


class Trash:
    """Blocks. `coming` is what thrown away things will free, as far as it is known."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.way = RightOfWay()
        self._emptying = threading.Lock()
        self._lock = threading.Lock()
        self._hurried = 0
        self.coming = NOTHING

    def expect(self, space: Space) -> None:
        with self._lock:
            self.coming = self.coming.plus(space)

    def empty(self, stop: threading.Event) -> None:
        """In the background: slowly, until it is empty or `stop` is set."""
        thread = threading.get_native_id()
        set_idle(thread, idle=True)
        try:
            with self._emptying:
                self._empty(_Steps(self, stop=stop, is_enough=lambda: False))
        finally:
            set_idle(thread, idle=False)

    def empty_now(self, is_enough: Callable[[], bool]) -> None:
        """Somebody waits for the room: at full speed, until it is enough."""
        with self._lock:
            self._hurried += 1
        try:
            with self._emptying:
                if not is_enough():
                    self._empty(_Steps(self, stop=None, is_enough=is_enough))
        finally:
            with self._lock:
                self._hurried -= 1

    @property
    def hurried(self) -> bool:
        return self._hurried > 0

    def freed(self, space: Space) -> None:
        with self._lock:
            left = Space(self.coming.bytes - space.bytes, self.coming.inodes - space.inodes)
            self.coming = Space(max(0, left.bytes), max(0, left.inodes))

    def _empty(self, steps: "_Steps") -> None:
        stuck = 0
        coming = self.coming
        try:
            for folder in self._layout.trashes():
                stuck += self._empty_folder(folder, steps)
        except _EnoughError:
            return
        if not stuck:
            self.freed(coming)  # whatever of it was never met

    def _empty_folder(self, folder: Path, steps: "_Steps") -> int:
        """How many things refuse to go."""
        stuck = 0
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(fd) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for name, is_directory in found:
                try:
                    if is_directory:
                        remove_tree(folder / name, steps.one_more, steps.unlink)
                    else:
                        steps.unlink(name, fd)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    stuck += 1
                    log.warning("trash.stuck", path=str(folder / name), error=str(error))
        finally:
            os.close(fd)
        return stuck


class _EnoughError(Exception):
    """There is no need to delete more now."""


class _Steps:
    def __init__(
        self, trash: Trash, *, stop: threading.Event | None, is_enough: Callable[[], bool]
    ) -> None:
        self._trash = trash
        self._stop = stop
        self._is_enough = is_enough
        self._slowly = stop is not None
        self._gone = 0

    def unlink(self, name: str, dir_fd: int) -> None:
        """Raises OSError, _EnoughError."""
        facts = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        size = facts.st_blocks * SECTOR_BYTES
        alone = facts.st_nlink == 1
        if self._slowly and alone and stat.S_ISREG(facts.st_mode) and size > STEP_BYTES:
            self._cut_short(name, dir_fd)
        os.unlink(name, dir_fd=dir_fd)
        if alone:
            self._trash.freed(Space(size, 1))
        self.one_more()

    def one_more(self) -> None:
        self._gone += 1
        if self._gone % STEP_FILES == 0:
            self.look_up()

    def _cut_short(self, name: str, dir_fd: int) -> None:
        """Whoever still reads it keeps it whole: then it is left to the last one that closes it."""
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            if not _nobody_else_has(fd):
                return
            size = os.fstat(fd).st_size
            while size > STEP_BYTES:
                size -= STEP_BYTES
                os.ftruncate(fd, size)
                self.look_up()
        finally:
            os.close(fd)

    def look_up(self) -> None:
        if self._stop is None:
            if self._is_enough():
                raise _EnoughError
            return
        self._rest(self._stop)

    def _rest(self, stop: threading.Event) -> None:
        """At least a moment; longer while a run is being prepared, but not for ever."""
        time.sleep(_REST_SECONDS)
        begun = time.monotonic()
        while self._trash.way.busy and not self._trash.hurried and not stop.is_set():
            if time.monotonic() - begun > _LONGEST_WAIT_SECONDS:
                break
            time.sleep(_BUSY_LOOK_SECONDS)
        if stop.is_set() or self._trash.hurried:
            raise _EnoughError


def _nobody_else_has(fd: int) -> bool:
    """A write lease is given only to the one who has a file open alone; see fcntl(2)."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True

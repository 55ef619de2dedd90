"""Walking directories that somebody else may have filled with traps.

Everything is opened relative to a directory descriptor, one component at a time, and no link is
ever followed. Depth is bounded by nothing but patience: two descriptors are open at any time.
"""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from executord.files.system.disk import unique_name

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20


class MovedError(Exception):
    """A directory was moved away while it was being walked."""


class NotRegularError(Exception):
    """What was to be read is no regular file (any more)."""


class Cursor:
    """An open directory and the way back up. `fd` is the directory it stands in."""

    def __init__(self, root: str | Path, *, dir_fd: int | None = None) -> None:
        self.fd = os.open(root, _DIRECTORY, dir_fd=dir_fd)
        self._trail: list[tuple[int, int]] = []

    @property
    def depth(self) -> int:
        return len(self._trail)

    def enter(self, name: str) -> None:
        child = os.open(name, _DIRECTORY, dir_fd=self.fd)
        self._trail.append(_identity(self.fd))
        os.close(self.fd)
        self.fd = child

    def leave(self) -> None:
        """Raises MovedError when the way up no longer leads where we came from."""
        parent = os.open("..", _DIRECTORY, dir_fd=self.fd)
        if _identity(parent) != self._trail.pop():
            os.close(parent)
            raise MovedError("a directory was moved away while it was being walked")
        os.close(self.fd)
        self.fd = parent

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Finder:
    """Opens files by path below a root, component by component; quick for neighbours in a row."""

    def __init__(self, root: str | Path) -> None:
        self._root = os.open(root, _DIRECTORY)
        self._parent = ""
        self._lock = threading.Lock()
        self._fd = os.dup(self._root)

    def open(self, path: str) -> int:
        """A regular file's descriptor. Raises NotRegularError, OSError. Any thread may ask."""
        parent, _, name = path.rpartition("/")
        with self._lock:
            if parent != self._parent:
                self._go(parent)
            return open_regular(self._fd, name)

    def _go(self, parent: str) -> None:
        fd = os.dup(self._root)
        try:
            for name in parent.split("/") if parent else ():
                child = os.open(name, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = child
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._parent = fd, parent

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._root)


def open_regular(dir_fd: int, name: str) -> int:
    """Never blocks on a FIFO, never follows a link. Raises NotRegularError, OSError."""
    fd = os.open(name, _FILE, dir_fd=dir_fd)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise NotRegularError(name)


def read_chunks(fd: int) -> Iterator[bytes]:
    while chunk := os.read(fd, _CHUNK_BYTES):
        yield chunk


def read_small(dir_fd: int, name: str, limit: int) -> bytes | None:
    """A regular file of at most `limit` bytes; None where there is no such thing."""
    try:
        fd = open_regular(dir_fd, name)
    except (OSError, NotRegularError):
        return None
    try:
        data = b""
        while len(data) <= limit and (chunk := os.read(fd, limit + 1 - len(data))):
            data += chunk
    finally:
        os.close(fd)
    return data if len(data) <= limit else None


def is_executable(mode: int) -> bool:
    return bool(mode & stat.S_IXUSR)


def special_kind(mode: int) -> str:
    """What kind of thing it is that cannot be stored, in a person's words."""
    kinds = {
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFBLK: "block device",
        stat.S_IFCHR: "character device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def _unlink(name: str, dir_fd: int) -> None:
    os.unlink(name, dir_fd=dir_fd)


def remove_tree(
    path: Path,
    pause: Callable[[], None] | None = None,
    unlink: Callable[[str, int], None] = _unlink,
) -> int:
    """Delete a directory of our own (nobody else writes to it any more); gives the files deleted.

    Deep directories are first moved up to `path` itself, so that any depth is fine. `pause` is
    called now and then, to let others have the disk; `unlink` deletes a file by its name and its
    directory's descriptor.
    """
    removed = 0
    with Cursor(path.parent) as above, Cursor(path.name, dir_fd=above.fd) as top:
        pending, removed = _empty(top.fd, ".", unlink)
        while pending:
            directories, files = _empty(top.fd, pending[-1], unlink)
            removed += files
            if directories:
                pending.extend(directories)
            else:
                os.rmdir(pending.pop(), dir_fd=top.fd)
            if pause is not None:
                pause()
        os.rmdir(path.name, dir_fd=above.fd)
    return removed


def _empty(top: int, name: str, unlink: Callable[[str, int], None]) -> tuple[list[str], int]:
    """Unlink the files of `name`, and move its directories into `top` under fresh names."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=top)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=top)
        fd = os.open(name, _DIRECTORY, dir_fd=top)
    moved: list[str] = []
    files = 0
    try:
        with os.scandir(fd) as listing:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]
        for entry_name, is_directory in entries:
            if is_directory and name == ".":
                moved.append(entry_name)
            elif is_directory:
                fresh = unique_name()
                os.rename(entry_name, fresh, src_dir_fd=fd, dst_dir_fd=top)
                moved.append(fresh)
            else:
                unlink(entry_name, fd)
                files += 1
    finally:
        os.close(fd)
    return moved, files


def _identity(fd: int) -> tuple[int, int]:
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino

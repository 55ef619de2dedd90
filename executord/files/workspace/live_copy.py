"""A copy of what a run has changed, taken while its processes stand still.

Of an overlay's upper directory everything is copied: directories, links, deletions and opaque
marks, and the files by sharing their blocks where the filesystem can. What is then made of the
copy takes as long as it likes, for the run goes on.
"""

import errno
import fcntl
import os
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path

from executord.core.reasons import Reason
from executord.files.faults import CancelledWorkError, fault
from executord.files.system.directories import (
    Cursor,
    NotRegularError,
    open_regular,
    special_kind,
)
from executord.files.system.disk import allocated
from executord.files.workspace.changed import UpperDirectory
from executord.files.workspace.changes import MAX_DEPTH, MAX_ENTRIES
from executord.files.workspace.intake import MAX_FILE_BYTES

_FICLONE = 0x40049409  # linux/fs.h
_OPAQUE = "user.overlay.opaque"
_CHUNK_BYTES = 4 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class LiveCopy:
    """`changed` reads the copy. `cloned` and `copied` count files by how they came here."""

    changed: UpperDirectory
    cloned: int = 0
    copied: int = 0
    copied_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def way(self) -> str:
        return "copy" if self.copied else "reflink"


def copy_changes(changed: UpperDirectory, aside: Path, cancelled: threading.Event) -> LiveCopy:
    """What is half-made is the caller's to remove. FaultError, CancelledWorkError, OSError."""
    aside.mkdir(mode=0o700)
    copied = LiveCopy(UpperDirectory(aside))
    with Cursor(changed.top) as source, Cursor(aside) as target:
        _Copy(source, target, copied, cancelled).run()
    return copied


class _Copy:
    def __init__(
        self, source: Cursor, target: Cursor, copied: LiveCopy, cancelled: threading.Event
    ) -> None:
        self._source = source
        self._target = target
        self._copied = copied
        self._cancelled = cancelled
        self._clones = True
        self._entries = 0

    def run(self) -> None:
        stack = [("", self._directory(""))]
        while stack:
            path, pending = stack[-1]
            if not pending:
                stack.pop()
                if stack:
                    self._source.leave()
                    self._target.leave()
                continue
            name = pending.pop()
            self._source.enter(name)
            self._target.enter(name)
            below = f"{path}{name}/"
            stack.append((below, self._directory(below)))

    def _directory(self, path: str) -> list[str]:
        """Its own mark and its entries; gives its directories, which are made and empty."""
        if _is_opaque(self._source.fd):
            os.setxattr(self._target.fd, _OPAQUE, b"y")
        directories: list[str] = []
        with os.scandir(self._source.fd) as listing:
            for entry in listing:
                self._entries += 1
                if self._entries > MAX_ENTRIES:
                    raise fault(
                        Reason.WORKSPACE_FAILED,
                        f"The run changed more than {MAX_ENTRIES} files and directories.",
                    )
                if self._cancelled.is_set():
                    raise CancelledWorkError
                if self._one(entry, path):
                    directories.append(entry.name)
        return directories

    def _one(self, entry: os.DirEntry[str], path: str) -> bool:
        """True for a directory."""
        name, target = entry.name, self._target.fd
        facts = entry.stat(follow_symlinks=False)
        mode = facts.st_mode
        if stat.S_ISDIR(mode):
            if self._source.depth >= MAX_DEPTH:
                self._leave_out(name, path, f"deeper than {MAX_DEPTH} directories")
                return False
            os.mkdir(name, 0o700, dir_fd=target)
            return True
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=self._source.fd), name, dir_fd=target)
        elif stat.S_ISREG(mode):
            self._file(name, path, facts)
        elif stat.S_ISCHR(mode) and facts.st_rdev == 0:
            _whiteout(name, target)
        else:
            self._leave_out(name, path, f"a {special_kind(mode)} cannot be stored")
        return False

    def _leave_out(self, name: str, path: str, why: str) -> None:
        self._copied.skipped.append((f"{path}{name}", why))
        _whiteout(name, self._target.fd)

    def _file(self, name: str, path: str, facts: os.stat_result) -> None:
        if facts.st_size > MAX_FILE_BYTES:
            self._leave_out(name, path, f"larger than {MAX_FILE_BYTES} bytes")
            return
        try:
            source = open_regular(self._source.fd, name)
        except NotRegularError:
            self._leave_out(name, path, "changed into something else while it was read")
            return
        try:
            mode = 0o700 if facts.st_mode & stat.S_IXUSR else 0o600
            fd = os.open(name, _NEW, mode, dir_fd=self._target.fd)
            try:
                self._contents(source, fd, facts.st_size)
            finally:
                os.close(fd)
        finally:
            os.close(source)

    def _contents(self, source: int, target: int, size: int) -> None:
        if self._clones:
            try:
                fcntl.ioctl(target, _FICLONE, source)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                self._clones = False
            else:
                self._copied.cloned += 1
                return
        self._copied.copied += 1
        self._copied.copied_bytes += allocated(size)
        self._copy(source, target, size)

    def _copy(self, source: int, target: int, size: int) -> None:
        """Data only: holes stay holes."""
        position = 0
        while position < size:
            try:
                position = os.lseek(source, position, os.SEEK_DATA)
                end = min(size, os.lseek(source, position, os.SEEK_HOLE))
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # nothing but a hole follows
            while position < end:
                if self._cancelled.is_set():
                    raise CancelledWorkError
                count = min(_CHUNK_BYTES, end - position)
                os.lseek(target, position, os.SEEK_SET)
                sent = os.sendfile(target, source, position, count)
                if not sent:
                    end = size = position
                    break
                position += sent
        os.ftruncate(target, size)


def _whiteout(name: str, dir_fd: int) -> None:
    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dir_fd)


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise

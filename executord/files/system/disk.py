"""What the standard library lacks or makes slow: syncfs, reflinks, durable small files."""

import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_FICLONE = 0x40049409  # linux/fs.h
_NO_CLONE = {
    errno.EOPNOTSUPP,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EPERM,
    errno.ETXTBSY,
}
_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(_CHUNK_BYTES)
_BLOCK_BYTES = 4096
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

_libc = ctypes.CDLL(None, use_errno=True)


def sync_filesystem(path: str | Path) -> None:
    """Everything written so far to the filesystem of `path` is on disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)


def start_writeback(fd: int, start: int, length: int) -> None:
    """Ask that these bytes go to the disk soon, so that a later sync has less to wait for."""
    _libc.sync_file_range(
        fd, ctypes.c_longlong(start), ctypes.c_longlong(length), _SYNC_FILE_RANGE_WRITE
    )


def sync_directory(path: str | Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unique_name() -> str:
    return secrets.token_hex(8)


def write_whole(path: str | Path, data: bytes, *, durable: bool, mode: int = 0o644) -> None:
    """All or nothing: written aside and renamed. Durable also against a power cut, if asked."""
    target = Path(path)
    aside = target.with_name(f".{target.name[:40]}.{unique_name()}")
    try:
        write_new(aside, (data,), durable=durable, mode=mode)
        aside.rename(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(target.parent)


def write_new(
    path: str | Path, chunks: Iterable[bytes], *, durable: bool = False, mode: int = 0o644
) -> int:
    """A file that must not exist yet; runs of zeros become holes. Gives its size.

    The mode is set whatever the umask. What `chunks` raises leaves a partial file behind.
    """
    fd = os.open(path, _WRITE, mode)
    try:
        os.fchmod(fd, mode)
        size = write_chunks(fd, chunks)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    return size


def write_small(path: str, data: bytes, *, mode: int, owner: tuple[int, int]) -> int:
    """A new file of these bytes, with as few calls as it takes; gives its inode."""
    fd = os.open(path, _WRITE, mode)
    try:
        if data:
            _write_all(fd, data)
        facts = os.fstat(fd)
        if facts.st_mode & 0o7777 != mode:
            os.fchmod(fd, mode)
        if (facts.st_uid, facts.st_gid) != owner:
            os.fchown(fd, *owner)
        return facts.st_ino
    finally:
        os.close(fd)


def write_piece(fd: int, data: bytes) -> None:
    """At the descriptor's position; MiBs of zeros become holes, also at the end of the file."""
    view = memoryview(data)
    for at in range(0, len(data), _CHUNK_BYTES):
        part = view[at : at + _CHUNK_BYTES]
        if part[0] == 0 and len(part) == _CHUNK_BYTES and part.tobytes() == _ZEROS:
            os.lseek(fd, len(part), os.SEEK_CUR)
            continue
        while part:
            part = part[os.write(fd, part) :]


def write_chunks(fd: int, chunks: Iterable[bytes]) -> int:
    size = 0
    hole_at_end = False
    for chunk in chunks:
        length = len(chunk)
        if _is_hole(chunk, length):
            os.lseek(fd, length, os.SEEK_CUR)
            hole_at_end = True
        else:
            _write_all(fd, chunk)
            hole_at_end = False
        size += length
    if hole_at_end:
        os.ftruncate(fd, size)
    return size


def _is_hole(chunk: bytes, length: int) -> bool:
    if not _BLOCK_BYTES <= length <= _CHUNK_BYTES or chunk[0]:
        return False
    return chunk == _ZEROS[:length]


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    if written == len(data):
        return
    rest = memoryview(data)
    while written < len(data):
        written += os.write(fd, rest[written:])


def copy_file(source: str | int, target: str, *, target_dir: int, mode: int) -> int:
    """A new file of the same content; shares its blocks where the filesystem can. Its fd's owner.

    Gives the size. `source` is a path or an open descriptor; the target must not exist.
    """
    opened = isinstance(source, str)
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if isinstance(source, str) else source
    try:
        fd = os.open(target, _WRITE, mode, dir_fd=target_dir)
        try:
            os.fchmod(fd, mode)
            _clone_or_copy(source_fd, fd)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)
    finally:
        if opened:
            os.close(source_fd)


def clone_file(source: Path, target: Path) -> None:
    """A new file that shares all blocks. Raises OSError where the filesystem cannot."""
    with source.open("rb") as old, target.open("xb") as new:
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())


def _clone_or_copy(source_fd: int, target_fd: int) -> None:
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
    else:
        return
    write_chunks(target_fd, _chunks_of(source_fd))


def _chunks_of(fd: int) -> Iterator[bytes]:
    """From the start, wherever the descriptor stands."""
    offset = 0
    while chunk := os.pread(fd, _CHUNK_BYTES, offset):
        yield chunk
        offset += len(chunk)


def allocated(size: int) -> int:
    """Bytes that a file of this size takes on disk, near enough for accounting."""
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def free_bytes(path: str | Path) -> int:
    """What an ordinary user may still write; the reserve for root is not counted."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


class FreeSpace(NamedTuple):
    """`inodes` is None where the filesystem makes them as they are needed."""

    bytes: int
    inodes: int | None


def free_space(path: str | Path) -> FreeSpace:
    """For an ordinary user: the reserve for root is not counted."""
    facts = os.statvfs(path)
    return FreeSpace(facts.f_bavail * facts.f_frsize, facts.f_favail if facts.f_files else None)


def chown_if_needed(path: str | int, owner: tuple[int, int], *, dir_fd: int | None = None) -> None:
    """Nothing is asked of the kernel where what this process makes has that owner anyway."""
    if owner == (os.geteuid(), os.getegid()):
        return
    os.chown(path, *owner, dir_fd=dir_fd, follow_symlinks=isinstance(path, int))

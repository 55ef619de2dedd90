"""Files with holes: zeros that need not be read."""

import os
from collections.abc import Iterator

_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(_CHUNK_BYTES)
_BLOCK_BYTES = 512


def sparse_chunks(fd: int) -> Iterator[bytes]:
    """All of a file's bytes from its start; those in holes come from memory, not from the kernel.

    Leaves the position anywhere. Raises OSError.
    """
    facts = os.fstat(fd)
    if facts.st_blocks * _BLOCK_BYTES >= facts.st_size:
        while chunk := os.read(fd, _CHUNK_BYTES):
            yield chunk
        return
    position, size = 0, facts.st_size
    while position < size:
        data = _seek(fd, position, os.SEEK_DATA, size)
        yield from _zeros(data - position)
        end = _seek(fd, data, os.SEEK_HOLE, size) if data < size else size
        position = data
        while position < end:
            chunk = os.pread(fd, min(_CHUNK_BYTES, end - position), position)
            if not chunk:
                return  # cut while it was read
            yield chunk
            position += len(chunk)


def hole_bytes(fd: int, enough: int) -> int:
    """How many bytes lie in holes; looks closely only where `enough` or more may."""
    facts = os.fstat(fd)
    missing = facts.st_size - facts.st_blocks * _BLOCK_BYTES
    if missing <= enough:
        return max(0, missing)
    position = found = 0
    while position < facts.st_size and found <= enough:
        data = _seek(fd, position, os.SEEK_DATA, facts.st_size)
        found += data - position
        position = _seek(fd, data, os.SEEK_HOLE, facts.st_size) if data < facts.st_size else data
    os.lseek(fd, 0, os.SEEK_SET)
    return found


def _zeros(count: int) -> Iterator[bytes]:
    for _ in range(count // _CHUNK_BYTES):
        yield _ZEROS
    if count % _CHUNK_BYTES:
        yield _ZEROS[: count % _CHUNK_BYTES]


def _seek(fd: int, position: int, whence: int, size: int) -> int:
    """The next data or hole; the file's end where there is none."""
    try:
        return min(os.lseek(fd, position, whence), size)
    except OSError:  # ENXIO: nothing but a hole follows
        return size

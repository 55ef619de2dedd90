"""SHA-256 of open files, quickly: the interpreter is free for others while a piece is hashed."""

import hashlib
import os
import threading
from collections.abc import Callable

from executord.files.faults import CancelledWorkError
from executord.files.model import digests

_PIECE_BYTES = 1 << 20


def nothing(_: int) -> None:
    """For who neither counts nor rests."""


def digest_of(
    fd: int,
    size: int,
    *,
    cancelled: threading.Event,
    rest: Callable[[int], None] = nothing,
) -> str:
    """Of all that the file holds from its start; `size` is what it should have, in bytes.

    `rest` is told the bytes of each piece and may sleep. Raises OSError, CancelledWorkError.
    """
    if size < _PIECE_BYTES:
        data = os.pread(fd, size + 1, 0)
        if len(data) == size:
            rest(size)
            return digests.of_bytes(data)
    hasher = hashlib.sha256()
    piece = bytearray(_PIECE_BYTES)
    view = memoryview(piece)
    offset = 0
    while count := os.preadv(fd, (piece,), offset):
        if cancelled.is_set():
            raise CancelledWorkError
        hasher.update(view[:count])
        offset += count
        rest(count)
    return digests.PREFIX + hasher.hexdigest()

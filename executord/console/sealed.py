"""The console of an ended run: one file of compressed blocks, each with the offsets it covers.

The blocks hold the very frames of the segments, so that reading before and after gives the same.
Whoever resumes skips whole blocks by their headers.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import structlog

from executord.console.records import SEGMENT_BYTES, decode_all
from executord.console.segments import OpenSegment, Segments

log = structlog.get_logger(__name__)

SEALED_NAME = "console.sealed"
_ASIDE_NAME = "console.sealing"
_MAGIC = b"excseal1"
_BLOCK = struct.Struct("<QQIIB3xI")
_BLOCK_BYTES = 1024 * 1024
_DEFLATE = 1
_LEVEL = 3


class SealedFile:
    """Reads a sealed console from an offset on; a damaged block is left out."""

    def __init__(self, path: Path, offset: int) -> None:
        """FileNotFoundError where there is none."""
        self._file: BinaryIO = path.open("rb")
        self._path = path
        self._offset = offset
        self._file.seek(len(_MAGIC))

    def next_block(self) -> tuple[int, bytes] | None:
        """The frames of the next block that reaches beyond the offset, and where they begin."""
        while len(head := self._file.read(_BLOCK.size)) == _BLOCK.size:
            start, end, raw_bytes, stored_bytes, codec, crc = _BLOCK.unpack(head)
            if end < self._offset:
                self._file.seek(stored_bytes, os.SEEK_CUR)
                continue
            stored = self._file.read(stored_bytes)
            if codec != _DEFLATE or zlib.crc32(stored) != crc or raw_bytes > 2 * _BLOCK_BYTES:
                log.error("console.sealed_block_damaged", path=str(self._path), offset=start)
                continue
            raw = zlib.decompressobj().decompress(stored, 2 * _BLOCK_BYTES)
            return start, raw
        return None

    def close(self) -> None:
        self._file.close()


def seal(segments: Segments) -> None:
    """Write the sealed file beside the segments, all or nothing, and let it replace them. OSError.

    Nothing may be written to the segments any more. Repeating it after a crash is safe.
    """
    directory = segments.directory
    sealed = directory / SEALED_NAME
    if directory.exists() and not sealed.exists():
        aside = directory / _ASIDE_NAME
        try:
            _compress(segments, aside)
            aside.rename(sealed)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        _sync_directory(directory)
    segments.retire()


def _compress(segments: Segments, target: Path) -> None:
    with target.open("wb") as file:
        file.write(_MAGIC)
        for block in _blocks(segments):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _blocks(segments: Segments) -> Iterator[bytes]:
    opened = segments.open_at(0)
    while opened is not None:
        try:
            data = _read(opened)
        finally:
            os.close(opened.descriptor)
        yield from _blocks_of(data, opened.segment.offset)
        opened = segments.open_after(opened.segment)


def _read(opened: OpenSegment) -> bytes:
    with os.fdopen(os.dup(opened.descriptor), "rb") as file:
        return file.read(opened.segment.size)


def _blocks_of(data: bytes, offset: int) -> Iterator[bytes]:
    begin, start = SEGMENT_BYTES, offset
    end = begin
    for frame, frame_end in decode_all(data, SEGMENT_BYTES):
        if frame_end - begin > _BLOCK_BYTES:
            yield _block(data[begin:end], start, offset)
            begin, start = end, offset
        offset += frame.output_bytes
        end = frame_end
    if end > begin:
        yield _block(data[begin:end], start, offset)


def _block(raw: bytes, start: int, end: int) -> bytes:
    stored = zlib.compress(raw, _LEVEL)
    crc = zlib.crc32(stored)
    return _BLOCK.pack(start, end, len(raw), len(stored), _DEFLATE, crc) + stored


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""How console output lies on disk: frames, each with a checksum and the place it came from.

A segment file is a header (where it starts, and how far the source had been read when it was
begun) followed by frames. A frame is

    magic u16 · stream u8 · flags u8 · data length u32 · time ns i64 · source u64 u64 · crc32 u32

little-endian, then, if flag HELD is set, the two streams' own places, then the data. The place
says where reading the source goes on after this frame, so that data and position become durable
together. What does not check is the torn end of a file, and is cut off.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast, get_args

from executord.ports import ConsoleRecord, Stream

MAX_DATA_BYTES = 64 * 1024
FRAME_BYTES = 36
NANOSECONDS = 1_000_000_000

_STREAMS: tuple[Stream, ...] = cast("tuple[Stream, ...]", get_args(Stream))
_CODE_OF = {stream: code for code, stream in enumerate(_STREAMS)}

_FRAME = struct.Struct("<HBBIqQQ")
_PLACES = struct.Struct("<QQIQQI")
_CRC = struct.Struct("<I")
_LOST = struct.Struct("<Q")
_SEGMENT = struct.Struct("<8sQ")
_FRAME_MAGIC = 0xE7C5
_SEGMENT_MAGIC = b"excseg1\n"
_HELD = 1

SEGMENT_BYTES = _SEGMENT.size + _PLACES.size + _CRC.size
LARGEST_FRAME_BYTES = FRAME_BYTES + _PLACES.size + MAX_DATA_BYTES


class Place(NamedTuple):
    """A point in a source: which file, the byte where an entry begins, and how many bytes of that
    entry's output are already kept. `file` 0 is the very beginning.
    """

    file: int = 0
    position: int = 0
    inner: int = 0


BEGINNING = Place()


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far each of the container's streams is kept; they differ while one is held back."""

    stdout: Place = BEGINNING
    stderr: Place = BEGINNING

    @property
    def together(self) -> bool:
        return self.stdout == self.stderr and self.stdout.inner == 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One kept piece of output; `cursor` holds once it is kept. A gap has no data."""

    stream: Stream
    time_ns: int
    data: bytes
    cursor: Cursor
    lost_bytes: int = 0

    @property
    def output_bytes(self) -> int:
        return self.lost_bytes if self.stream == "gap" else len(self.data)

    def record(self, offset: int) -> ConsoleRecord:
        return ConsoleRecord(
            offset=offset,
            time=self.time_ns / NANOSECONDS,
            stream=self.stream,
            data=self.data,
            lost_bytes=self.lost_bytes,
        )


def encode(frame: Frame) -> bytes:
    """ValueError when the data is larger than MAX_DATA_BYTES."""
    data = _LOST.pack(frame.lost_bytes) if frame.stream == "gap" else frame.data
    if len(data) > MAX_DATA_BYTES:
        raise ValueError(f"a frame holds at most {MAX_DATA_BYTES} bytes, not {len(data)}")
    together = frame.cursor.together
    place = frame.cursor.stdout
    head = _FRAME.pack(
        _FRAME_MAGIC,
        _CODE_OF[frame.stream],
        0 if together else _HELD,
        len(data),
        frame.time_ns,
        place.file,
        place.position,
    )
    rest = data if together else _pack_cursor(frame.cursor) + data
    return b"".join((head, _CRC.pack(zlib.crc32(rest, zlib.crc32(head))), rest))


def decode(buffer: bytes, at: int = 0) -> tuple[Frame, int] | None:
    """The frame at `at` and where the next one begins; None when none is whole and sound there."""
    if at + FRAME_BYTES > len(buffer):
        return None
    magic, code, flags, length, time_ns, file, position = _FRAME.unpack_from(buffer, at)
    if magic != _FRAME_MAGIC or code >= len(_STREAMS) or length > MAX_DATA_BYTES:
        return None
    begin = at + FRAME_BYTES
    data_at = begin + (_PLACES.size if flags & _HELD else 0)
    end = data_at + length
    if end > len(buffer):
        return None
    (crc,) = _CRC.unpack_from(buffer, begin - _CRC.size)
    head = zlib.crc32(buffer[at : begin - _CRC.size])
    if zlib.crc32(buffer[begin:end], head) != crc:
        return None
    if flags & _HELD:
        cursor = _unpack_cursor(buffer, begin)
    else:
        place = Place(file, position)
        cursor = Cursor(place, place)
    data = buffer[data_at:end]
    stream = _STREAMS[code]
    if stream != "gap":
        return Frame(stream, time_ns, data, cursor), end
    if length != _LOST.size:
        return None
    return Frame(stream, time_ns, b"", cursor, lost_bytes=_LOST.unpack(data)[0]), end


def decode_all(buffer: bytes, at: int = 0) -> Iterator[tuple[Frame, int]]:
    """Every sound frame from `at` on, with where it ends."""
    while (found := decode(buffer, at)) is not None:
        yield found
        at = found[1]


def encode_segment_header(offset: int, cursor: Cursor) -> bytes:
    head = _SEGMENT.pack(_SEGMENT_MAGIC, offset) + _pack_cursor(cursor)
    return head + _CRC.pack(zlib.crc32(head))


def decode_segment_header(buffer: bytes) -> tuple[int, Cursor] | None:
    """The segment's first offset and the cursor at its beginning; None when it is not sound."""
    if len(buffer) < SEGMENT_BYTES:
        return None
    magic, offset = _SEGMENT.unpack_from(buffer)
    (crc,) = _CRC.unpack_from(buffer, SEGMENT_BYTES - _CRC.size)
    if magic != _SEGMENT_MAGIC or zlib.crc32(buffer[: SEGMENT_BYTES - _CRC.size]) != crc:
        return None
    return offset, _unpack_cursor(buffer, _SEGMENT.size)


def _pack_cursor(cursor: Cursor) -> bytes:
    out, err = cursor.stdout, cursor.stderr
    return _PLACES.pack(out.file, out.position, out.inner, err.file, err.position, err.inner)


def _unpack_cursor(buffer: bytes, at: int) -> Cursor:
    out_file, out_at, out_inner, err_file, err_at, err_inner = _PLACES.unpack_from(buffer, at)
    return Cursor(Place(out_file, out_at, out_inner), Place(err_file, err_at, err_inner))

"""The console of one run on disk while it grows: segment files that are only ever appended to.

When there is more than the limit, the oldest segment outside the first half goes, so that the
beginning and the end stay. What is gone shows as a jump between one segment's end and the next
one's first offset. Any thread may write or read; each `write` is one piece.
"""

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import structlog

from executord.console.records import (
    MAX_DATA_BYTES,
    NANOSECONDS,
    SEGMENT_BYTES,
    Cursor,
    Frame,
    decode_all,
    decode_segment_header,
    encode,
    encode_segment_header,
)
from executord.ports import Stream

log = structlog.get_logger(__name__)

_SEGMENTS = 16
_NAME = re.compile(r"(\d{20})\.seg")
_SMALLEST_SEGMENT_BYTES = 4096


@dataclass(slots=True)
class Segment:
    """`offset` is the first output byte in it; `size` is what of the file is whole."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A segment opened for reading: it can be read to its end even if it is deleted meanwhile."""

    segment: Segment
    descriptor: int


@dataclass(slots=True)
class _Writing:
    descriptor: int
    segment: Segment


@dataclass(slots=True)
class Segments:
    """`limit_bytes` bounds the files' size; it is exceeded by one segment at most."""

    directory: Path
    limit_bytes: int
    cursor: Cursor = field(default_factory=Cursor)
    end_offset: int = 0
    retired: bool = False
    _segments: list[Segment] = field(default_factory=list)
    _unsynced: set[Path] = field(default_factory=set)
    _writing: _Writing | None = None
    _lock: Lock = field(default_factory=Lock)
    _write_lock: Lock = field(default_factory=Lock)

    @property
    def segment_bytes(self) -> int:
        return max(_SMALLEST_SEGMENT_BYTES, self.limit_bytes // _SEGMENTS)

    def load(self) -> None:
        """Find what is there, cut a torn end off, and go on from it. OSError."""
        with self._lock:
            self._segments = _list(self.directory)
            while self._segments and not self._adopt(self._segments[-1]):
                self._segments.pop().path.unlink()

    @property
    def is_writing(self) -> bool:
        return self._writing is not None

    def write(self, frames: list[Frame]) -> None:
        """Frames that are kept are taken from the list; OSError leaves the rest in it."""
        with self._write_lock:
            self._write(frames)

    def write_aside(self, stream: Stream, now: float, data: bytes) -> None:
        """Output, or a gap, that does not come from the source: the cursor stays. OSError."""
        with self._write_lock:
            starts = range(0, max(1, len(data)), MAX_DATA_BYTES)
            parts = [data[at : at + MAX_DATA_BYTES] for at in starts]
            time_ns = int(now * NANOSECONDS)
            self._write([Frame(stream, time_ns, part, self.cursor) for part in parts])

    def _write(self, frames: list[Frame]) -> None:
        while frames:
            room = self._room()
            chunk: list[bytes] = []
            for frame in frames:
                chunk.append(encode(frame))
                room -= len(chunk[-1])
                if room <= 0:
                    break
            self._append(b"".join(chunk), frames[: len(chunk)])
            del frames[: len(chunk)]

    def open_at(self, offset: int) -> OpenSegment | None:
        """The segment that holds `offset`, or the nearest one; None where there is none."""
        with self._lock:
            earlier = [s for s in self._segments if s.offset <= offset]
            chosen = earlier[-1] if earlier else next(iter(self._segments), None)
            return None if chosen is None else self._open(chosen)

    def open_after(self, segment: Segment) -> OpenSegment | None:
        """The next one that is still there."""
        with self._lock:
            later = (s for s in self._segments if s.offset > segment.offset)
            chosen = next(later, None)
            return None if chosen is None else self._open(chosen)

    def sync(self) -> None:
        """What was written before the call is on the disk. OSError."""
        with self._lock:
            unsynced, self._unsynced = self._unsynced, set()
        for path in unsynced:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def retire(self) -> None:
        """The sealed console stands in: delete the segments; open readers keep what they hold."""
        with self._lock:
            self.retired = True
            self._close_writing()
            segments, self._segments = self._segments, []
        for segment in segments:
            segment.path.unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            self._close_writing()

    # -- inside ------------------------------------------------------------------------------------

    def _room(self) -> int:
        """What still goes into the segment that is being written; a new one takes at least that."""
        room = self.segment_bytes - SEGMENT_BYTES
        if self._writing is not None and self._writing.segment.size < self.segment_bytes:
            room = self.segment_bytes - self._writing.segment.size
        return room

    def _append(self, chunk: bytes, frames: Sequence[Frame]) -> None:
        writing = self._writing
        if writing is None or self._is_full(writing.segment):
            writing = self._roll()
        size = writing.segment.size
        _write_all(writing.descriptor, chunk, size)
        self.end_offset += sum(frame.output_bytes for frame in frames)
        self.cursor = frames[-1].cursor
        writing.segment.size = size + len(chunk)
        with self._lock:
            self._unsynced.add(writing.segment.path)
        self._trim()

    def _roll(self) -> _Writing:
        with self._lock:
            last = self._segments[-1] if self._segments else None
            if last is not None and not self._is_full(last):
                self._writing = _Writing(_open_to_write(last.path), last)
                return self._writing
            if last is None:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.directory / f"{self.end_offset:020d}.seg"
            descriptor = _open_to_write(path)
            try:
                _write_all(descriptor, encode_segment_header(self.end_offset, self.cursor), 0)
            except OSError:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                raise
            segment = Segment(path, self.end_offset, SEGMENT_BYTES)
            self._close_writing()
            self._segments.append(segment)
            self._writing = _Writing(descriptor, segment)
            return self._writing

    def _is_full(self, segment: Segment) -> bool:
        """One without a byte of output cannot be followed: the next would have its name."""
        return segment.size >= self.segment_bytes and segment.offset < self.end_offset

    def _trim(self) -> None:
        with self._lock:
            total = sum(segment.size for segment in self._segments)
            while total > self.limit_bytes and (victim := self._victim()) is not None:
                self._segments.remove(victim)
                self._unsynced.discard(victim.path)
                victim.path.unlink(missing_ok=True)
                total -= victim.size

    def _victim(self) -> Segment | None:
        """The oldest one that is neither in the first half nor being written."""
        before = 0
        for segment in self._segments[:-1]:
            before += segment.size
            if before > self.limit_bytes // 2:
                return segment
        return None

    def _adopt(self, last: Segment) -> bool:
        """Take offset and cursor from the last segment; False when its header is torn."""
        data = last.path.read_bytes()
        header = decode_segment_header(data)
        if header is None or header[0] != last.offset:
            log.warning("console.segment_torn", path=str(last.path), size_bytes=len(data))
            return False
        self.end_offset, self.cursor = header
        last.size = SEGMENT_BYTES
        for frame, end in decode_all(data, SEGMENT_BYTES):
            self.end_offset += frame.output_bytes
            self.cursor = frame.cursor
            last.size = end
        if last.size < len(data):
            log.warning("console.tail_cut", path=str(last.path), cut_bytes=len(data) - last.size)
            os.truncate(last.path, last.size)
        return True

    def _open(self, segment: Segment) -> OpenSegment:
        return OpenSegment(segment, os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC))

    def _close_writing(self) -> None:
        if self._writing is not None:
            os.close(self._writing.descriptor)
            self._writing = None


def gap(now: float, cursor: Cursor, lost_bytes: int = 0) -> Frame:
    """A gap of `lost_bytes`; 0 when nobody knows how much is missing."""
    return Frame("gap", int(now * NANOSECONDS), b"", cursor, lost_bytes=lost_bytes)


def _list(directory: Path) -> list[Segment]:
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    return [
        Segment(path, int(match[1]), path.stat().st_size)
        for path in paths
        if (match := _NAME.fullmatch(path.name))
    ]


def _open_to_write(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, data: bytes, position: int) -> None:
    """What was written of it before an error is written over the next time."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view = view[written:]
        position += written

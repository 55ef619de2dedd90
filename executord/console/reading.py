"""Reading a console in bounded pieces, while it grows, while it shrinks, and when it is sealed."""

import os
from collections.abc import Iterator
from threading import Lock

from executord.console.records import (
    LARGEST_FRAME_BYTES,
    SEGMENT_BYTES,
    Frame,
    decode_all,
)
from executord.console.sealed import SEALED_NAME, SealedFile
from executord.console.segments import OpenSegment, Segments
from executord.ports import ConsoleRecord, Stream

_CHUNK_BYTES = 4 * LARGEST_FRAME_BYTES


class ConsoleReader:
    """One reader of one console: gives records from `since` on, bounded in number and size.

    A thread that is still reading may be left behind: closing waits for it. Gaps are given
    whatever `stream` is asked for.
    """

    def __init__(self, segments: Segments, *, since: int, stream: Stream | None) -> None:
        self._lock = Lock()
        self._segments = segments
        self._stream = stream
        self._offset = since
        self._gap_told_at: int | None = None
        self._opened: OpenSegment | None = None
        self._position = SEGMENT_BYTES
        self._frames_at = since
        self._sealed: SealedFile | None = None

    def next_records(self) -> list[ConsoleRecord]:
        """Empty when there is nothing more now. OSError."""
        with self._lock:
            return self._next_records()

    def close(self) -> None:
        with self._lock:
            self._leave_segment()
            if self._sealed is not None:
                self._sealed.close()
                self._sealed = None

    # -- inside ------------------------------------------------------------------------------------

    def _next_records(self) -> list[ConsoleRecord]:
        while (found := self._next_frames()) is not None:
            start, frames = found
            records = list(self._cut(start, frames))
            if records:
                return records
        return []

    def _next_frames(self) -> tuple[int, list[Frame]] | None:
        if self._sealed is None:
            while self._opened is not None or self._enter_segment():
                found = self._frames_of_segment()
                if found is not None:
                    return found
                if not self._enter_next_segment():
                    break
            if not self._segments.retired or self._opened is not None:
                return None
            try:
                self._sealed = SealedFile(self._segments.directory / SEALED_NAME, self._offset)
            except FileNotFoundError:
                return None  # nothing was ever written, or it is deleted
        return self._frames_of_sealed(self._sealed)

    def _frames_of_segment(self) -> tuple[int, list[Frame]] | None:
        assert self._opened is not None
        wanted = min(self._opened.segment.size - self._position, _CHUNK_BYTES)
        if wanted <= 0:
            return None
        data = os.pread(self._opened.descriptor, wanted, self._position)
        start = self._frames_at
        frames = self._take(data)
        return (start, frames) if frames else None

    def _take(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        used = 0
        for frame, end in decode_all(data):
            frames.append(frame)
            used = end
            self._frames_at += frame.output_bytes
        self._position += used
        return frames

    def _frames_of_sealed(self, sealed: SealedFile) -> tuple[int, list[Frame]] | None:
        block = sealed.next_block()
        if block is None:
            return None
        start, data = block
        return start, [frame for frame, _ in decode_all(data)]

    def _enter_segment(self) -> bool:
        return self._enter(self._segments.open_at(self._offset))

    def _enter_next_segment(self) -> bool:
        """Stays where it is while there is no later one: it may still grow."""
        assert self._opened is not None
        following = self._segments.open_after(self._opened.segment)
        if following is None:
            if self._segments.retired:
                self._leave_segment()
            return False
        self._leave_segment()
        return self._enter(following)

    def _enter(self, opened: OpenSegment | None) -> bool:
        self._opened = opened
        self._position = SEGMENT_BYTES
        if opened is not None:
            self._frames_at = opened.segment.offset
        return opened is not None

    def _leave_segment(self) -> None:
        if self._opened is not None:
            os.close(self._opened.descriptor)
            self._opened = None

    def _cut(self, start: int, frames: list[Frame]) -> Iterator[ConsoleRecord]:
        """Records from the offset on: the first one may be a part, and jumps become gaps."""
        for frame in frames:
            if start > self._offset:
                yield self._gap(frame, start)
            end = start + frame.output_bytes
            if self._is_new(frame, end):
                skipped = max(0, self._offset - start)
                self._gap_told_at = end if end == start else None
                self._offset = end
                if self._stream in (None, frame.stream) or frame.stream == "gap":
                    yield _part(frame.record(start), skipped)
            start = end

    def _is_new(self, frame: Frame, end: int) -> bool:
        if frame.stream == "gap" and frame.lost_bytes == 0:
            return end >= self._offset and self._gap_told_at != end
        return end > self._offset

    def _gap(self, following: Frame, start: int) -> ConsoleRecord:
        lost = start - self._offset
        record = ConsoleRecord(
            offset=self._offset,
            time=following.record(start).time,
            stream="gap",
            data=b"",
            lost_bytes=lost,
        )
        self._offset = start
        return record


def _part(record: ConsoleRecord, skipped: int) -> ConsoleRecord:
    if skipped == 0:
        return record
    return ConsoleRecord(
        offset=record.offset + skipped,
        time=record.time,
        stream=record.stream,
        data=record.data[skipped:],
        lost_bytes=max(0, record.lost_bytes - skipped),
    )

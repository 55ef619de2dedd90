"""From a source to the disk: mask secrets, join small pieces, keep each with its place.

What has been read but not kept is read again after a crash: the cursor written with a frame lets
each stream go on exactly where its kept output ends, also while the end of one is held back.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from executord.console.records import MAX_DATA_BYTES, NANOSECONDS, Cursor, Frame, Place
from executord.console.redaction import Redactor
from executord.console.segments import Segments, gap
from executord.console.sources import Found, Missing, Piece, Source

_JOIN_WITHIN_NS = 5_000_000

Side: TypeAlias = Literal["stdout", "stderr"]


@dataclass(slots=True)
class _Side:
    """One stream: what it holds back, entry by entry, and what was kept before a restart."""

    redactor: Redactor
    entries: deque[tuple[Place, int]] = field(default_factory=deque)
    skip_to: Place | None = None
    skips_in_this_file: bool = False

    def drop_kept(self, begin: Place, data: bytes) -> tuple[Place, bytes]:
        """Without what is on the disk already, as far as `skip_to` tells."""
        kept = self.skip_to
        if kept is None:
            return begin, data
        if begin.file != kept.file or begin.position < kept.position:
            return begin, b""
        self.skip_to = None
        return kept, data[kept.inner :]

    def passed(self, place: Place) -> None:
        """Reading has come to `place`: forget what lies before it, or in a log that is gone."""
        kept = self.skip_to
        if kept is None:
            return
        if place.file == kept.file:
            self.skips_in_this_file = True
            if place.position > kept.position:
                self.skip_to = None
        elif self.skips_in_this_file:  # it was kept to the very end of a log that was rotated
            self.skip_to = None

    def hold(self, begin: Place, data: bytes) -> None:
        if data:
            self.entries.append((begin, len(data)))

    def unkept_from(self, end: Place) -> Place:
        """Where this stream's unkept output begins; `end` when nothing is held back."""
        surplus = sum(length for _, length in self.entries) - len(self.redactor.held)
        while self.entries and surplus >= self.entries[0][1]:
            surplus -= self.entries.popleft()[1]
        if not self.entries:
            return self.skip_to or end
        begin, length = self.entries[0]
        if surplus > 0:
            begin = Place(begin.file, begin.position, begin.inner + surplus)
            self.entries[0] = (begin, length - surplus)
        return begin


@dataclass(slots=True)
class _Draft:
    """A frame in the making."""

    stream: Side
    time_ns: int
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0

    def takes(self, piece: Piece, largest: int) -> bool:
        return (
            self.stream == piece.stream
            and piece.time_ns - self.time_ns < _JOIN_WITHIN_NS
            and self.size + len(piece.data) <= largest
        )

    def add(self, data: bytes) -> None:
        self.pieces.append(data)
        self.size += len(data)

    def frames(self, before: Cursor, after: Cursor) -> list[Frame]:
        """More than one only where an entry is larger than a frame; those but the last one do not
        move the cursor: a torn write then repeats, and never loses.
        """
        data = b"".join(self.pieces)
        starts = range(0, len(data), MAX_DATA_BYTES)
        parts = [data[at : at + MAX_DATA_BYTES] for at in starts]
        frames = [Frame(self.stream, self.time_ns, part, before) for part in parts[:-1]]
        return [*frames, Frame(self.stream, self.time_ns, parts[-1], after)]


class Tail:
    """Keeps one container's output. Used by one thread; `step` is to be called again and again."""

    def __init__(
        self,
        *,
        source: Source,
        segments: Segments,
        patterns: Callable[[], tuple[bytes, ...]],
        now: Callable[[], float],
    ) -> None:
        self._source = source
        self._segments = segments
        self._patterns = patterns
        self._now = now
        self._unkept: list[Frame] = []
        self._largest = max(1024, min(MAX_DATA_BYTES, segments.segment_bytes // 4))
        self._sides: dict[Side, _Side] = {
            "stdout": _Side(Redactor(())),
            "stderr": _Side(Redactor(())),
        }
        self._draft: _Draft | None = None
        self._gap_last = False
        cursor = source.resume(segments.cursor)
        if not cursor.together:
            self._sides["stdout"].skip_to = cursor.stdout if cursor.stdout.file else None
            self._sides["stderr"].skip_to = cursor.stderr if cursor.stderr.file else None
        self._is_behind = not cursor.together
        self._read_to = max(cursor.stdout, cursor.stderr)
        self._last_cursor = segments.cursor

    def step(self) -> bool:
        """Keep a bounded part of what is new; False when there is none. OSError: call again."""
        if self._unkept:
            self._segments.write(self._unkept)
        found = self._source.read()
        if not found:
            return False
        self._take(found)
        self._segments.write(self._unkept)
        return True

    def finish(self) -> None:
        """The writer has ended and `step` found nothing more. OSError: call again."""
        if not self._unkept:
            self._take(self._source.finish())
            now_ns = int(self._now() * NANOSECONDS)
            for stream, side in self._sides.items():
                self._add(stream, now_ns, side.redactor.flush())
                self._end_draft()
        self._segments.write(self._unkept)

    def close(self) -> None:
        self._source.close()

    # -- inside ------------------------------------------------------------------------------------

    def _take(self, found: Iterable[Found]) -> None:
        patterns = self._patterns()
        for side in self._sides.values():
            side.redactor.patterns = patterns
        for item in found:
            if isinstance(item, Missing):
                self._miss(item)
                continue
            draft = self._draft
            if draft is not None and not draft.takes(item, self._largest):
                self._end_draft()
            self._read_to = item.end
            data = item.data
            if patterns or self._is_behind:
                data = self._sift(item, data)
            self._add(item.stream, item.time_ns, data)
        self._end_draft()
        self._is_behind = any(s.skip_to or s.redactor.held for s in self._sides.values())

    def _sift(self, piece: Piece, data: bytes) -> bytes:
        """What of it is to be kept now: not what is kept already, nor what may be a secret."""
        side = self._sides[piece.stream]
        for each in self._sides.values():
            each.passed(piece.begin)
        begin, data = side.drop_kept(piece.begin, data)
        side.hold(begin, data)
        return side.redactor.feed(data)

    def _miss(self, item: Missing) -> None:
        self._end_draft()
        if item.end.file:
            self._read_to = item.end
            for side in self._sides.values():
                if side.skip_to is not None and side.skip_to.file != item.end.file:
                    side.skip_to = None
        if not self._gap_last:
            self._gap_last = True
            self._last_cursor = self._cursor()
            self._unkept.append(gap(self._now(), self._last_cursor))

    def _cursor(self) -> Cursor:
        end = self._read_to
        stdout, stderr = (side.unkept_from(end) for side in self._sides.values())
        return Cursor(stdout, stderr)

    def _add(self, stream: Side, time_ns: int, data: bytes) -> None:
        if data:
            if self._draft is None:
                self._draft = _Draft(stream, time_ns)
            self._draft.add(data)

    def _end_draft(self) -> None:
        """What was read so far is in the frames, or held back: the cursor says which."""
        draft, self._draft = self._draft, None
        if draft is not None:
            self._gap_last = False
            after = self._cursor()
            self._unkept.extend(draft.frames(self._last_cursor, after))
            self._last_cursor = after

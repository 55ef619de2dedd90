"""Where a container's output is read from: a Source gives pieces in order, from any place on.

`JsonLogSource` reads the engine's json-file log straight from the file that `inspect` names, one
JSON object a line. The engine renames the file to `NAME.1` when it is full and begins a new one
under the old name; an open file is read to its end before the next one is begun.
"""

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec
import structlog

from executord.console.records import Cursor, Place
from executord.console.times import parse_time

log = structlog.get_logger(__name__)

_READ_BYTES = 256 * 1024
_LONGEST_LINE_BYTES = 1024 * 1024
_MOST_WAITING_FILES = 8
_TRIES = 4
_NO_FILE = 0


class Piece(NamedTuple):
    """Output of one stream. `begin` is where the entry lies, `end` where the next one begins."""

    stream: Literal["stdout", "stderr"]
    time_ns: int
    data: bytes
    begin: Place
    end: Place


@dataclass(frozen=True, slots=True)
class Missing:
    """Output that is known to be lost, nobody knows how much; reading goes on at `end`."""

    why: str
    end: Place


Found: TypeAlias = Piece | Missing


class Source(Protocol):
    """Used by one thread. What was given is given again only by another `resume`."""

    def resume(self, cursor: Cursor) -> Cursor:
        """Go on at the earlier one of the two places; the caller drops what it has already.

        Gives the cursor back, with the beginning for a place that is no longer there.
        """
        ...

    def read(self) -> Sequence[Found]:
        """What is there now, a bounded part of it; empty when there is no more yet. OSError."""
        ...

    def finish(self) -> Sequence[Found]:
        """The writer has ended and `read` gave nothing more: what is left over."""
        ...

    def close(self) -> None: ...


class _Entry(msgspec.Struct):
    log: str = ""
    stream: str = ""
    time: str = ""


@dataclass(slots=True)
class _LogFile:
    """`id` is made of its first line, which carries a time in nanoseconds; inodes are reused."""

    descriptor: int
    inode: tuple[int, int]
    id: int = _NO_FILE
    position: int = 0
    rest: bytes = b""

    @property
    def place(self) -> Place:
        return Place(self.id, self.position)

    def identify(self) -> bool:
        """False while the first line is not whole."""
        if self.id == _NO_FILE:
            line, newline, _ = os.pread(self.descriptor, _LONGEST_LINE_BYTES, 0).partition(b"\n")
            if newline or len(line) == _LONGEST_LINE_BYTES:
                digest = hashlib.blake2b(line, digest_size=8).digest()
                self.id = int.from_bytes(digest, "little") or 1
        return self.id != _NO_FILE

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(slots=True)
class JsonLogSource:
    """`path` is the log's name as the engine tells it; `NAME.1` holds what came before."""

    path: Path
    _files: deque[_LogFile] = field(default_factory=deque)
    _last_inode: tuple[int, int] | None = None
    _lost: str = ""
    _decoder: msgspec.json.Decoder[_Entry] = field(
        default_factory=lambda: msgspec.json.Decoder(_Entry)
    )

    def resume(self, cursor: Cursor) -> Cursor:
        self.close()
        self._look_for_files()
        stdout, stderr = self._find(cursor.stdout), self._find(cursor.stderr)
        if stdout is None or stderr is None:
            self._lost = "a part of the log is gone"
        found = [at for at in (stdout, stderr) if at is not None]
        if found:
            index, position = min(found)
            for _ in range(min(index, len(self._files))):
                self._files.popleft().close()
            if self._files:
                self._files[0].position = position
        return Cursor(
            Place() if stdout is None else cursor.stdout,
            Place() if stderr is None else cursor.stderr,
        )

    def read(self) -> Sequence[Found]:
        found: list[Found] = []
        self._look_for_files()
        while self._files and not found:
            file = self._files[0]
            if not file.identify():
                if len(self._files) == 1:
                    break
                self._leave(file)
                continue
            found.extend(self._told_losses(file))
            grown = self._read_file(file, found)
            if not found and not grown:
                if len(self._files) == 1:
                    break
                self._leave(file)
        return found

    def finish(self) -> Sequence[Found]:
        if not self._files:
            if not self._lost:
                return ()
            return (Missing(self._lost, Place()),)
        file = self._files[0]
        found = list(self._told_losses(file))
        if file.rest:
            found.append(Missing("the log's last line is torn", file.place))
        return found

    def close(self) -> None:
        while self._files:
            self._files.pop().close()
        self._last_inode = None

    # -- inside ------------------------------------------------------------------------------------

    def _look_for_files(self) -> None:
        """Open what has appeared under the log's name since the last look, none left out."""
        for _ in range(_TRIES):
            newest = _inode_of(self.path)
            if newest is None or newest == self._last_inode:
                return
            new = _open(self.path)
            before = _open(self.path.with_name(f"{self.path.name}.1"))
            if new is not None and new.inode == _inode_of(self.path):
                self._queue(before, new)
                return
            for file in (new, before):
                if file is not None:
                    file.close()

    def _queue(self, before: _LogFile | None, new: _LogFile) -> None:
        inode = before.inode if before is not None else None
        if inode != self._last_inode and self._last_inode is not None:
            self._lost = "the log was rotated faster than it was read"
        if before is not None:
            if inode == self._last_inode:
                before.close()
            else:
                self._files.append(before)
        self._files.append(new)
        self._last_inode = new.inode
        while len(self._files) > _MOST_WAITING_FILES:
            self._lost = "the log grew faster than it was read"
            self._files.popleft().close()

    def _find(self, place: Place) -> tuple[int, int] | None:
        if place.file == _NO_FILE:
            return 0, 0
        for index, file in enumerate(self._files):
            if file.identify() and file.id == place.file and place.position <= file.size():
                return index, place.position
        return None

    def _leave(self, file: _LogFile) -> None:
        if file.rest:
            self._lost = "the last line of a rotated log is torn"
        self._files.popleft()
        file.close()

    def _told_losses(self, file: _LogFile) -> Sequence[Found]:
        if not self._lost:
            return ()
        why, self._lost = self._lost, ""
        return (Missing(why, file.place),)

    def _read_file(self, file: _LogFile, found: list[Found]) -> bool:
        """Whether the file had more bytes than were read before."""
        begin = file.position + len(file.rest)
        data = os.pread(file.descriptor, _READ_BYTES, begin)
        if not data:
            if file.size() < begin:
                file.position, file.rest, file.id = 0, b"", _NO_FILE
                self._lost = "the log was truncated"
                return True
            return False
        lines = (file.rest + data).split(b"\n")
        file.rest = lines.pop()
        place = file.place
        for line in lines:
            end = Place(file.id, place.position + len(line) + 1)
            found.append(self._piece(line, place, end))
            place = end
        file.position = place.position
        if len(file.rest) > _LONGEST_LINE_BYTES:
            file.position += len(file.rest)
            file.rest = b""
            found.append(Missing("a line of the log has no end", file.place))
        return True

    def _piece(self, line: bytes, begin: Place, end: Place) -> Found:
        try:
            entry = self._decoder.decode(line)
            time_ns = parse_time(entry.time)
            data = entry.log.encode()
        except (msgspec.DecodeError, ValueError):
            return Missing("a line of the log is not JSON", end)
        if entry.stream == "stdout":
            return Piece("stdout", time_ns, data, begin, end)
        if entry.stream == "stderr":
            return Piece("stderr", time_ns, data, begin, end)
        return Missing(f"a line of the log has the stream {entry.stream[:32]!r}", end)


def _open(path: Path) -> _LogFile | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    status = os.fstat(descriptor)
    return _LogFile(descriptor, (status.st_dev, status.st_ino))


def _inode_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino

"""Writing a run's console: user code's stdout to stdout, everything else of it to stderr.

Bytes go through unchanged into files and pipes. A terminal gets them through a filter, unless the
person asks for them raw.
"""

import os
import sys
from collections.abc import Callable
from typing import BinaryIO, TextIO

from executord.cli.output import is_coloured, styled
from executord.cli.resume import Record
from executord.cli.terminal import Filter
from executord.cli.units import size, utc


class ConsoleWriter:
    """`before_write` is called before anything reaches a stream, to take a live display away."""

    def __init__(
        self,
        *,
        raw: bool = False,
        timestamps: bool = False,
        only_to_stderr: bool = False,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        self._raw = raw
        self._timestamps = timestamps
        self._only_to_stderr = only_to_stderr
        self._before_write = before_write
        self._filters: dict[str, Filter] = {}
        self._mid_line: dict[int, bool] = {}

    def write(self, record: Record) -> None:
        self._before_write()
        if record.stream == "gap":
            self._write_gap(record)
            return
        target = self._target(record.stream)
        data = self._filtered(record.stream, target, record.data)
        if not data:
            return
        middle = self._mid_line.get(target.fileno(), False)
        self._mid_line[target.fileno()] = not data.endswith(b"\n")
        if self._timestamps:
            data = _stamped(data, f"{utc(record.time)} ".encode(), middle=middle)
        _put(target, data)

    def finish_line(self) -> None:
        """Where a terminal's cursor stands behind unfinished output, begin a new line."""
        for stream in (sys.stdout, sys.stderr):
            if self._mid_line.get(stream.fileno()) and stream.isatty():
                _put(stream, b"\n")
                self._mid_line[stream.fileno()] = False

    @property
    def at_line_start(self) -> bool:
        return not any(self._mid_line.values())

    def end(self) -> None:
        """Write what a filter still holds back."""
        for name, kept in self._filters.items():
            rest = kept.end().encode(errors="replace")
            if rest:
                self._before_write()
                _put(self._target(name), rest)
        self._filters.clear()

    def _target(self, stream: str) -> TextIO:
        return sys.stdout if stream == "stdout" and not self._only_to_stderr else sys.stderr

    def _filtered(self, name: str, target: TextIO, data: bytes) -> bytes:
        if self._raw or not target.isatty():
            return data
        return self._filters.setdefault(name, Filter()).feed(data).encode(errors="replace")

    def _write_gap(self, record: Record) -> None:
        self.finish_line()
        amount = size(record.lost_bytes) if record.lost_bytes else "an unknown amount"
        text = f"[… {amount} of output is missing here …]"
        if is_coloured(sys.stderr):
            text = styled(text, "yellow")
        _put(sys.stderr, f"{text}\n".encode(errors="replace"))


def _stamped(data: bytes, stamp: bytes, *, middle: bool) -> bytes:
    lines = _lines(data)
    return b"".join(
        line if number == 0 and middle else stamp + line for number, line in enumerate(lines)
    )


def _lines(data: bytes) -> list[bytes]:
    """Lines that end in a line feed alone, which they keep."""
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _put(stream: TextIO, data: bytes) -> None:
    stream.flush()
    binary: BinaryIO = stream.buffer
    binary.write(data)
    binary.flush()


def can_draw(stream: TextIO) -> bool:
    """Whether a display that redraws itself makes sense on `stream`."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")

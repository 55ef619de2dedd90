"""The record of what the cache was asked for: two files that take turns, bounded in size.

    trace-v1/uses.jsonl       being written; one use a line, see `core.cache_trace`
             uses.1.jsonl     the one before

Each file tells the blobs of its trees itself, so that it can be read alone.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from executord.core.cache_trace import BadTraceError, TracePart, Use, decode, encode, sample

MOST_BYTES = 8 << 20


class TraceLog:
    """Blocks; for one thread at a time."""

    def __init__(self, root: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder = root / "trace-v1"
        self._most_bytes = most_bytes
        self._told: set[str] = set()

    @property
    def _current(self) -> Path:
        return self._folder / "uses.jsonl"

    @property
    def _previous(self) -> Path:
        return self._folder / "uses.1.jsonl"

    def has_told(self, tree: str) -> bool:
        """Whether its blobs are in the file that is being written."""
        return tree in self._told

    def add(self, uses: list[Use]) -> None:
        """Raises OSError."""
        if not uses:
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        lines = "".join(f"{encode(use)}\n" for use in uses)
        fd = os.open(
            self._current, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode=0o600
        )
        with os.fdopen(fd, "a", encoding="utf-8") as file:
            if file.tell() and not self._ends_with_a_line():
                file.write("\n")  # a power cut left half a line
            file.write(lines)
            size = file.tell()
        self._told.update(use.tree for use in uses if use.parts)
        if size > self._most_bytes:
            self._current.replace(self._previous)
            self._told.clear()

    def read(self) -> Iterator[Use]:
        """The older ones first; what cannot be read is left out."""
        for path in (self._previous, self._current):
            with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
                for line in file:
                    with contextlib.suppress(BadTraceError):
                        yield decode(line)

    def _ends_with_a_line(self) -> bool:
        with self._current.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def parts_of(blobs: Iterator[tuple[int, int]]) -> tuple[tuple[TracePart, ...], int]:
    """From the first 64 bits of digests with sizes in bytes; see `core.cache_trace.sample`."""
    return sample(TracePart(name, -(-size // 4096)) for name, size in blobs)

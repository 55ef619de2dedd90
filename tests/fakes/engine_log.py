"""A container's json-file log as the engine writes it: split at 16 KiB, rotated by renaming."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

PIECE_BYTES = 16 * 1024


def entry(stream: str, text: str, time_ns: int) -> bytes:
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    when = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{fraction:09d}".rstrip("0")
    stamp = f"{when}.{digits}Z" if digits else f"{when}Z"
    line = json.dumps({"log": text, "stream": stream, "time": stamp}, ensure_ascii=False)
    return line.encode() + b"\n"


class EngineLog:
    """`max_bytes` 0 never rotates."""

    def __init__(self, path: Path, *, max_bytes: int = 0) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._file = path.open("ab", buffering=0)

    def write(self, text: str, stream: str = "stdout", *, time_ns: int | None = None) -> None:
        at = time.time_ns() if time_ns is None else time_ns
        for line in text.splitlines(keepends=True):
            for begin in range(0, len(line), PIECE_BYTES):
                if self.max_bytes and self._file.tell() >= self.max_bytes:
                    self.rotate()
                self._file.write(entry(stream, line[begin : begin + PIECE_BYTES], at))

    def write_raw(self, data: bytes) -> None:
        self._file.write(data)

    def rotate(self) -> None:
        self._file.close()
        self.path.rename(self.path.with_name(f"{self.path.name}.1"))
        self._file = self.path.open("ab", buffering=0)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.path.with_name(f"{self.path.name}.1").unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

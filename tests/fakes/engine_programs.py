"""What runs inside the containers of the fake engine: scripted programs and their output."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from executord.ports import ContainerSpec

SIGNAL_BASE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeVolume:
    name: str
    lower: tuple[Path, ...]
    upper: Path
    work: Path
    labels: Mapping[str, str]


class Process:
    """What a program sees of its container.

    A signal without a handler ends the process, as the kernel's defaults do; SIGKILL always does.
    """

    def __init__(
        self,
        spec: ContainerSpec,
        volume: FakeVolume | None,
        log_path: str,
        mounted: Mapping[str, FakeVolume] | None = None,
    ) -> None:
        self.spec = spec
        self.mounted = mounted or {}
        self.volume = volume
        self.handlers: dict[str, Callable[[], None]] = {}
        self.oom_killed = False
        self.never_ran = ""
        self._log_path = log_path

    def write(self, data: bytes, stream: Literal["stdout", "stderr"] = "stdout") -> None:
        """Append to the container's log, as the engine's json-file driver would write it."""
        if not self._log_path:
            return
        now = datetime.now(UTC).isoformat().replace("+00:00", "000Z")
        with Path(self._log_path).open("a", encoding="utf-8") as log:
            for line in data.splitlines(keepends=True):
                text = line.decode("utf-8", "replace")
                record = {"log": text, "stream": stream, "time": now}
                log.write(json.dumps(record, separators=(",", ":")) + "\n")

    def write_file(self, path: str, content: bytes) -> None:
        """Write below the working directory: it lands in the upper directory of its volume."""
        assert self.volume is not None, "the container has no volume"
        target = self.volume.upper / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def read_mounted(self, target: str, name: str) -> bytes | None:
        """A file of the read-only volume that is mounted there, of the layer that has it first."""
        for layer in self.mounted[target].lower:
            with contextlib.suppress(FileNotFoundError):
                return (layer / name).read_bytes()
        return None


Program = Callable[[Process], Awaitable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A program: writes its output and files at once, works for a while, exits.

    It works for `seconds`, and then until `until` is set. `never_ran` is the message of an init
    that could not execute the command; the exit code is then that of the init (126 or 127).
    """

    output: tuple[bytes, ...] = ()
    errors: tuple[bytes, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    until: asyncio.Event | None = None
    exit_code: int = 0
    oom_killed: bool = False
    ignores: frozenset[str] = frozenset()
    never_ran: str = ""

    async def __call__(self, process: Process) -> int:
        for name in self.ignores:
            process.handlers[name] = _nothing
        for line in self.output:
            process.write(line)
        for line in self.errors:
            process.write(line, "stderr")
        for path, content in self.files.items():
            process.write_file(path, content)
        await asyncio.sleep(self.seconds)
        if self.until is not None:
            await self.until.wait()
        process.oom_killed = self.oom_killed
        process.never_ran = self.never_ran
        return self.exit_code


def _nothing() -> None:
    """Stand in for a handler that ignores its signal."""


def code_of_signal(name: str) -> int:
    return SIGNAL_BASE + signal.Signals[name].value


SLEEPS_FOR_EVER = Script(seconds=86_400.0)

"""One run's console as the archive holds it while the daemon has to do with it."""

import asyncio
import errno
import hashlib
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from executord.console.redaction import Redactor
from executord.console.sealed import SEALED_NAME, seal
from executord.console.segments import Segments
from executord.core.reasons import Fault, FaultError, Reason

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True, eq=False)
class Console:
    """`closed` says that no output will come any more; `aside` masks what is appended."""

    segments: Segments
    loaded: bool = False
    patterns: tuple[bytes, ...] = ()
    secrets_known: bool = False
    aside: Redactor = field(default_factory=lambda: Redactor(()))
    appending: asyncio.Lock = field(default_factory=asyncio.Lock)
    collecting: bool = False
    drained: bool = False
    closed: bool = False
    followers: set[asyncio.Event] = field(default_factory=set)

    @classmethod
    def at(cls, directory: Path, limit_bytes: int) -> "Console":
        return cls(Segments(directory, limit_bytes))

    def load(self) -> None:
        """What is on the disk. Blocks. OSError."""
        self.segments.load()
        if (self.segments.directory / SEALED_NAME).exists():
            self.closed = True
            self.segments.retire()
        self.loaded = True

    def seal(self) -> None:
        """Blocks. OSError."""
        self.segments.close()
        seal(self.segments)

    def end(self) -> None:
        self.closed = True
        self.wake()

    def wake(self) -> None:
        for follower in self.followers:
            follower.set()


def directory_name(run_id: str) -> str:
    """The run's own id where it makes a plain file name, else a digest of it."""
    if _PLAIN_NAME.fullmatch(run_id):
        return run_id
    return "+" + hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()


def remove(directory: Path) -> None:
    """Blocks. OSError; nothing happens where there is none."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return


def fault_of(error: OSError) -> FaultError:
    reason = Reason.DISK_FULL if error.errno in _FULL else Reason.INTERNAL
    detail = f"The console's file {error.filename or ''} cannot be used: {error.strerror}."
    return FaultError(Fault(reason, detail, {"errno": error.errno}))

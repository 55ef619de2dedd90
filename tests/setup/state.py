"""
Where development state lives: outside the clone, in one folder that clones share.

The folder keeps its path short, since Unix sockets and overlay option strings are limited.

    run/docker.sock docker.pid docker.log kept   the engine that set-up started
    run/exec/                                    its sockets, its containerd, its shims
    data/                                        its images, containers and volumes
    debs/ images/                                what was downloaded and what was made of it
    locks/                                       one file a lock, held by flock
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLONE = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = "/var/tmp/executord-dev"
LONGEST_FOLDER_BYTES = 60


class SetupError(Exception):
    """Set-up cannot go on; the text is a sentence that says what to do."""


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def carry_out(action: Callable[[], int]) -> int:
    """Give the action's exit status; 1, with a sentence for a person, when it cannot be done."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        return action()
    except SetupError as error:
        say(f"failed: {error}")
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"failed: {error}; mend that (is the disk full?), or `make clean` and try again")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1


@dataclass(frozen=True)
class DevFolder:
    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def exec_root(self) -> Path:
        return self.run / "exec"

    @property
    def socket(self) -> Path:
        return self.run / "docker.sock"

    @property
    def pidfile(self) -> Path:
        return self.run / "docker.pid"

    @property
    def log(self) -> Path:
        return self.run / "docker.log"

    @property
    def kept(self) -> Path:
        """Exists while the engine is to stay up although nobody uses it (`make engine`)."""
        return self.run / "kept"

    @property
    def debs(self) -> Path:
        return self.root / "debs"

    @property
    def images(self) -> Path:
        return self.root / "images"

    def lock_file(self, name: str) -> Path:
        return self.root / "locks" / name


def dev_folder_path() -> Path:
    return Path(os.environ.get("EXECUTORD_DEV_DIR") or DEFAULT_FOLDER)


def open_dev_folder() -> DevFolder:
    """Give the folder, made when missing; refuse one that somebody else could fill with theirs."""
    root = dev_folder_path()
    if not root.is_absolute() or len(os.fsencode(root)) > LONGEST_FOLDER_BYTES:
        raise SetupError(
            f"EXECUTORD_DEV_DIR={root} has to be an absolute path of at most "
            f"{LONGEST_FOLDER_BYTES} bytes, because sockets are made in it; set a shorter one"
        )
    folder = DevFolder(root)
    try:
        for part in (root, folder.run, folder.debs, folder.images, root / "locks"):
            part.mkdir(mode=0o755, parents=part == root, exist_ok=True)
        owner = root.lstat()
    except OSError as error:
        raise SetupError(
            f"cannot make {error.filename} ({error.strerror}); "
            "set EXECUTORD_DEV_DIR to a folder that can be written"
        ) from error
    if owner.st_uid != os.geteuid() or root.is_symlink():
        raise SetupError(
            f"{root} is a link or belongs to another user (uid {owner.st_uid}); "
            "set EXECUTORD_DEV_DIR to a folder of your own"
        )
    return folder


class FileLock:
    """
    A flock on a file of its own; the kernel drops it when its holder dies.

    `take` waits, `try_take` does not. Taking it again with the other kind changes the kind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def take(self, *, shared: bool = False) -> None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        while not self._flock(kind):
            self.release()

    def try_take(self) -> bool:
        """Take it for this process alone; False, and not held, when somebody has it."""
        self.release()
        try:
            while not self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB):
                self.release()
        except BlockingIOError:
            self.release()
            return False
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _flock(self, kind: int) -> bool:
        """Lock the file; False if it lost its name meanwhile, as `make clean` may remove it."""
        if self._fd is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._fd, kind)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        held = os.fstat(self._fd)
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock; say so when somebody else has it first."""
    lock = FileLock(path)
    if not lock.try_take():
        say("waiting for another make to finish its set-up")
        lock.take()
    try:
        yield
    finally:
        lock.release()

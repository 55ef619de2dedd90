"""A directory as a store, also one that several machines share."""

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from executord.files.faults import corrupt
from executord.files.store.bucket import CHUNK_BYTES, MissingObjectError, Upload
from executord.files.store.object_bucket import away, refused
from executord.files.system import disk

_PIECE_FILES = 8192
_PIECE_BYTES = 1 << 30
_LOCK_SECONDS = 30.0
_STALE_SECONDS = 86_400.0
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must hold nobody up


class DirectoryBucket:
    """Objects are staged, synced by the batch, and renamed. Folders and files get the access
    rights of the directory itself, so that a group may share it.
    """

    parallelism = 1

    def __init__(self, root: Path, *, create: bool) -> None:
        self._where = f"file://{root}"
        self._root = root
        with self._asking("be opened"):
            if create:
                root.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._check()
            self._folder_mode = root.stat().st_mode & 0o7777
        self._file_mode = self._folder_mode & 0o666

    # -- reading -----------------------------------------------------------------------------------

    def size(self, key: str) -> int | None:
        with self._asking(f"look for {key}"):
            try:
                return os.stat(f"{self._root}/{key}").st_size  # noqa: PTH116 - hot
            except FileNotFoundError:
                self._check()
                return None

    def read(self, key: str) -> Iterator[bytes]:
        with self._opened(key) as fd:
            while chunk := os.read(fd, CHUNK_BYTES):
                yield chunk

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._opened(key) as fd:
            data = os.pread(fd, length, start)
            while data and len(data) < length:
                more = os.pread(fd, length - len(data), start + len(data))
                if not more:
                    break
                data += more
            return data

    def path_of(self, key: str) -> str | None:
        return f"{self._root}/{key}"

    def keys(self, prefix: str) -> Sequence[str]:
        with self._asking(f"list {prefix}"):
            self._check()
            try:
                return os.listdir(self._root / prefix)  # noqa: PTH208 - names are enough
            except FileNotFoundError:
                return ()

    @contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        with self._asking(f"read {key}"):
            try:
                fd = os.open(f"{self._root}/{key}", _READ)
            except FileNotFoundError as error:
                self._check()
                raise MissingObjectError(key) from error
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise corrupt(f"{key} in the store {self._where} is no regular file.")
                yield fd
            finally:
                os.close(fd)

    # -- writing -----------------------------------------------------------------------------------

    def put_many(self, uploads: Iterable[Upload], on_sent: Callable[[Upload], None]) -> None:
        staging = self._root / "incoming" / disk.unique_name()
        with self._asking("take new objects"):
            self._check()
            self._folder(staging.parent)
            _forget_stale(staging.parent)
            staging.mkdir()
        staged: list[tuple[str, str]] = []
        staged_bytes = 0
        number = 0
        try:
            for upload in uploads:
                following: Upload | None = upload
                while following is not None:
                    aside = f"{staging}/{number}"
                    number += 1
                    staged.append((aside, following.key))
                    with self._asking(f"write {following.key}"):
                        staged_bytes += disk.write_new(
                            aside, following.open(), mode=self._file_mode
                        )
                    following = following.then
                on_sent(upload)
                if len(staged) >= _PIECE_FILES or staged_bytes >= _PIECE_BYTES:
                    self._publish(staged)
                    staged_bytes = 0
            self._publish(staged)
        finally:
            for aside, _ in staged:
                Path(aside).unlink(missing_ok=True)
            staging.rmdir()

    def _publish(self, staged: list[tuple[str, str]]) -> None:
        if not staged:
            return
        with self._asking("take new objects"):
            disk.sync_filesystem(self._root)
            for aside, key in staged:
                target = f"{self._root}/{key}"
                try:
                    os.rename(aside, target)  # noqa: PTH104 - hot
                except FileNotFoundError:
                    self._folder(Path(target).parent)
                    os.rename(aside, target)  # noqa: PTH104 - hot
            disk.sync_filesystem(self._root)
        staged.clear()

    def swap(self, key: str, expected: bytes, new: bytes) -> bool:
        target = self._root / key
        with self._asking(f"move {key}"):
            self._check()
            self._folder(target.parent)
            with self._locked(key):
                current = b"".join(self.read(key)) if target.exists() else b""
                if current != expected:
                    return current == new
                disk.write_whole(target, new, durable=True, mode=self._file_mode)
                return True

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Keys share a fixed number of lock files, so that these never pile up."""
        path = self._root / "locks" / hashlib.sha256(key.encode()).hexdigest()[:2]
        self._folder(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, self._file_mode)
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                os.fchmod(fd, self._file_mode)
            _lock(fd, path)
            yield
        finally:
            os.close(fd)

    def _folder(self, path: Path) -> None:
        if path.is_dir():
            return
        self._folder(path.parent)
        try:
            path.mkdir()
        except FileExistsError:
            return
        path.chmod(self._folder_mode)

    # -- faults ------------------------------------------------------------------------------------

    def _check(self) -> None:
        """A store that went away must not look like one that lost its objects."""
        if not self._root.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(self._root))

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise refused(self._where, what, error) from error
        except OSError as error:
            raise away(self._where, what, error) from error


def _lock(fd: int, path: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "its lock is held", str(path)) from None
            time.sleep(0.01)
        else:
            return


def _forget_stale(incoming: Path) -> None:
    """What a killed push has left; other people's may not be ours to remove."""
    now = time.time()
    for leftover in incoming.iterdir():
        try:
            if now - leftover.stat().st_mtime < _STALE_SECONDS:
                continue
            for file in leftover.iterdir():
                file.unlink()
            leftover.rmdir()
        except OSError:
            continue

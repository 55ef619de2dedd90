"""Where the store's objects lie: an object store through obstore, or a directory.

Keys are slash-separated and made by `store.py` alone. Foreign exceptions become faults here.
"""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import obstore
from obstore import exceptions as foreign
from obstore.store import LocalStore, from_url

from executord.core.reasons import FaultError, Reason
from executord.files.faults import fault
from executord.files.system import disk

_CHUNK_BYTES = 1 << 20
_SMALL_BYTES = 16 << 20
_PIECE_FILES = 8192
_PIECE_BYTES = 1 << 30
_LOCK_SECONDS = 30.0
_STALE_SECONDS = 86_400.0
_SCHEMES = {"file", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory"}
_CLIENT_OPTIONS = {"connect_timeout": "10s", "timeout": "900s"}


class _BadUrlError(Exception):
    """A URL, or options for it, that obstore does not understand."""


class MissingObjectError(Exception):
    """There is no object under that key, though the store answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An object to be written. `open` gives its bytes, and raises if they are not the right ones;
    `size` is in bytes. `replace` is set where a bad one has to go.
    """

    key: str
    size: int
    open: Callable[[], Iterable[bytes]]
    replace: bool = False


class Bucket(Protocol):
    """Objects by key. All of it blocks; safe in any thread. `parallelism`: how many requests
    at once pay off.
    """

    parallelism: int

    def size(self, key: str) -> int | None:
        """None where there is no such object."""
        ...

    def read(self, key: str) -> Iterator[bytes]:
        """Raises MissingObjectError, at once or with the first piece."""
        ...

    def put_many(self, uploads: Iterable[Upload], on_sent: Callable[[Upload], None]) -> None:
        """All of them, complete and durable when it returns. One that is there is left alone."""
        ...

    def swap(self, key: str, expected: bytes, new: bytes) -> bool:
        """Replace `expected` (b"" for none) by `new`, atomically; False where it is another."""
        ...

    def keys(self, prefix: str) -> Sequence[str]:
        """Names directly below a folder."""
        ...


class ObjectBucket:
    """S3, GCS, Azure, or memory: whatever obstore opens by URL."""

    parallelism = 16

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self._where = url
        remote = not url.startswith("memory:")
        extra: dict[str, Any] = {"config": dict(options)} if options else {}
        if remote:
            extra["client_options"] = _CLIENT_OPTIONS
        with self._asking("be opened"):
            try:
                self._store = from_url(url, **extra)
            except ValueError as error:
                raise _BadUrlError(str(error)) from error

    def size(self, key: str) -> int | None:
        with self._asking(f"look for {key}"):
            try:
                return int(obstore.head(self._store, key)["size"])
            except (foreign.NotFoundError, FileNotFoundError):
                return None

    def read(self, key: str) -> Iterator[bytes]:
        with self._asking(f"read {key}"):
            found = self._get(key)
            if int(found.meta["size"]) <= _CHUNK_BYTES:
                yield bytes(found.bytes())
                return
            for piece in found.stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(piece)

    def put_many(self, uploads: Iterable[Upload], on_sent: Callable[[Upload], None]) -> None:
        pool = ThreadPoolExecutor(self.parallelism, thread_name_prefix="upload")
        under_way: set[Future[Upload]] = set()
        try:
            for upload in uploads:
                under_way.add(pool.submit(self._put, upload))
                if len(under_way) >= 2 * self.parallelism:
                    under_way = _collect(under_way, on_sent)
            while under_way:
                under_way = _collect(under_way, on_sent)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def swap(self, key: str, expected: bytes, new: bytes) -> bool:
        with self._asking(f"move {key}"):
            try:
                return self._swap(key, expected, new)
            except (foreign.PreconditionError, foreign.AlreadyExistsError, FileExistsError):
                # A repeated request finds what its lost first try has done.
                return self._current(key)[0] == new

    def keys(self, prefix: str) -> Sequence[str]:
        with self._asking(f"list {prefix}"):
            pages = obstore.list(self._store, f"{prefix}/")
            return [item["path"].rpartition("/")[2] for page in pages for item in page]

    def _get(self, key: str) -> "obstore.GetResult":
        try:
            return obstore.get(self._store, key)
        except (foreign.NotFoundError, FileNotFoundError) as error:
            raise MissingObjectError(key) from error

    def _put(self, upload: Upload) -> Upload:
        with self._asking(f"write {upload.key}"):
            if upload.size > _SMALL_BYTES:
                obstore.put(self._store, upload.key, upload.open())
                return upload
            data = b"".join(upload.open())
            mode = "overwrite" if upload.replace else "create"
            try:
                obstore.put(self._store, upload.key, data, mode=cast("Any", mode))
            except (foreign.AlreadyExistsError, FileExistsError):
                return upload
            return upload

    def _swap(self, key: str, expected: bytes, new: bytes) -> bool:
        current, version = self._current(key)
        if current != expected:
            return current == new
        obstore.put(self._store, key, new, mode=cast("Any", version or "create"))
        return True

    def _current(self, key: str) -> tuple[bytes, dict[str, str]]:
        try:
            found = self._get(key)
        except MissingObjectError:
            return b"", {}
        meta = found.meta
        known = {"e_tag": meta["e_tag"], "version": meta["version"]}
        return bytes(found.bytes()), {name: text for name, text in known.items() if text}

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except (foreign.PermissionDeniedError, foreign.UnauthenticatedError) as error:
            raise self._refused(what, error) from error
        except (foreign.BaseError, OSError, _BadUrlError) as error:
            if isinstance(error, PermissionError):
                raise self._refused(what, error) from error
            raise self._away(what, error) from error

    def _refused(self, what: str, error: Exception) -> FaultError:
        return fault(
            Reason.STORE_DENIED, f"The store {self._where} refuses to {what}: {_first_line(error)}"
        )

    def _away(self, what: str, error: Exception) -> FaultError:
        return fault(
            Reason.STORE_UNAVAILABLE,
            f"The store {self._where} cannot {what}: {_first_line(error)}",
        )


class DirectoryBucket(ObjectBucket):
    """A directory, also one that several machines share.

    Reading goes through obstore. Writing does not: its local store neither syncs nor compares
    before it swaps. Objects are staged, synced by the batch, and renamed. Folders and files get
    the access rights of the directory itself, so that a group may share it.
    """

    parallelism = 1

    def __init__(self, root: Path, *, create: bool) -> None:
        self._where = f"file://{root}"
        self._root = root
        with self._asking("be opened"):
            if create:
                root.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._check()
            self._store = LocalStore(prefix=str(root))
            self._folder_mode = root.stat().st_mode & 0o7777
        self._file_mode = self._folder_mode & 0o666

    def _get(self, key: str) -> "obstore.GetResult":
        try:
            return super()._get(key)
        except MissingObjectError:
            self._check()
            raise

    def size(self, key: str) -> int | None:
        with self._asking(f"look for {key}"):
            try:
                return os.stat(f"{self._root}/{key}").st_size  # noqa: PTH116 - hot
            except FileNotFoundError:
                self._check()
                return None

    def keys(self, prefix: str) -> Sequence[str]:
        with self._asking(f"list {prefix}"):
            self._check()
            try:
                return os.listdir(self._root / prefix)  # noqa: PTH208 - names are enough
            except FileNotFoundError:
                return ()

    def put_many(self, uploads: Iterable[Upload], on_sent: Callable[[Upload], None]) -> None:
        staging = self._root / "incoming" / disk.unique_name()
        with self._asking("take new objects"):
            self._check()
            self._folder(staging.parent)
            _forget_stale(staging.parent)
            staging.mkdir()
        staged: list[tuple[str, Upload]] = []
        staged_bytes = 0
        try:
            for number, upload in enumerate(uploads):
                aside = f"{staging}/{number}"
                staged.append((aside, upload))
                with self._asking(f"write {upload.key}"):
                    staged_bytes += disk.write_new(aside, upload.open(), mode=self._file_mode)
                on_sent(upload)
                if len(staged) >= _PIECE_FILES or staged_bytes >= _PIECE_BYTES:
                    self._publish(staged)
                    staged_bytes = 0
            self._publish(staged)
        finally:
            for aside, _ in staged:
                Path(aside).unlink(missing_ok=True)
            staging.rmdir()

    def _publish(self, staged: list[tuple[str, Upload]]) -> None:
        if not staged:
            return
        with self._asking("take new objects"):
            disk.sync_filesystem(self._root)
            for aside, upload in staged:
                target = f"{self._root}/{upload.key}"
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
                current = target.read_bytes() if target.exists() else b""
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

    def _check(self) -> None:
        """A store that went away must not look like one that lost its objects."""
        if not self._root.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(self._root))


class LazyBucket:
    """Opened when it is first needed, and again until that works: a store may come late."""

    def __init__(self, url: str, options: Mapping[str, str], *, create: bool) -> None:
        self._open = partial(open_bucket, url, options, create=create)
        self._opened: Bucket | None = None
        self.parallelism = 1 if url.startswith("file:") else ObjectBucket.parallelism

    def size(self, key: str) -> int | None:
        return self._bucket().size(key)

    def read(self, key: str) -> Iterator[bytes]:
        return self._bucket().read(key)

    def put_many(self, uploads: Iterable[Upload], on_sent: Callable[[Upload], None]) -> None:
        self._bucket().put_many(uploads, on_sent)

    def swap(self, key: str, expected: bytes, new: bytes) -> bool:
        return self._bucket().swap(key, expected, new)

    def keys(self, prefix: str) -> Sequence[str]:
        return self._bucket().keys(prefix)

    def _bucket(self) -> Bucket:
        if self._opened is None:
            self._opened = self._open()
        return self._opened


def open_bucket(url: str, options: Mapping[str, str], *, create: bool = False) -> Bucket:
    """`create` makes the directory of a file:// store where it is missing. Raises FaultError."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        if not rest.startswith("/"):
            raise fault(
                Reason.STORE_UNAVAILABLE, f"{url} is not a store: after file:// comes a whole path"
            )
        return DirectoryBucket(Path(rest), create=create)
    if scheme not in _SCHEMES:
        raise fault(
            Reason.STORE_UNAVAILABLE,
            f"{url} is not a store: it begins with none of {', '.join(sorted(_SCHEMES))}.",
        )
    return ObjectBucket(url, options)


def _collect(
    under_way: set[Future[Upload]], on_sent: Callable[[Upload], None]
) -> set[Future[Upload]]:
    done, rest = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        on_sent(future.result())
    return rest


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]

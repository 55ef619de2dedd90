"""An object store through obstore: S3, GCS, Azure, or memory."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import obstore
from obstore import exceptions as foreign
from obstore.store import from_url

from executord.core.reasons import FaultError, Reason
from executord.files.faults import fault
from executord.files.store.bucket import CHUNK_BYTES, MissingObjectError, Upload, first_line

_SMALL_BYTES = 16 << 20
_IN_FLIGHT_BYTES = 64 << 20
_PARTS_AT_ONCE = 4
_CLIENT_OPTIONS = {"connect_timeout": "10s", "timeout": "120s"}
_RETRIES = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=5),
        "base": 2.0,
    },
}
_BODY_TRIES = 5
_BODY_PAUSE_SECONDS = 0.2


class _BadUrlError(Exception):
    """A URL, or options for it, that obstore does not understand."""


class ObjectBucket:
    """Whatever obstore opens by URL. A reply that breaks off is asked for again from where it
    broke; a request that no byte answers within two minutes is given up.
    """

    parallelism = 16

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self._where = url
        remote = not url.startswith("memory:")
        given = dict(options)
        extra: dict[str, Any] = {}
        if remote:
            http = given.pop("allow_http", given.pop("aws_allow_http", ""))
            extra["client_options"] = _CLIENT_OPTIONS | ({"allow_http": True} if http else {})
            extra["retry_config"] = _RETRIES
        if given:
            extra["config"] = given
        with self._asking("be opened"):
            try:
                self._store = from_url(url, **extra)
            except ValueError as error:
                raise _BadUrlError(str(error)) from error

    # -- reading -----------------------------------------------------------------------------------

    def size(self, key: str) -> int | None:
        with self._asking(f"look for {key}"):
            try:
                return int(obstore.head(self._store, key)["size"])
            except (foreign.NotFoundError, FileNotFoundError):
                return None

    def read(self, key: str) -> Iterator[bytes]:
        with self._asking(f"read {key}"):
            found = self._get(key)
            size = int(found.meta["size"])
            if size <= CHUNK_BYTES:
                yield self._small(key, found)
                return
        seen = 0
        while seen < size:
            piece = self.read_range(key, seen, min(4 * CHUNK_BYTES, size - seen))
            if not piece:
                return
            seen += len(piece)
            yield piece

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""
        with self._asking(f"read {key}"):
            for left in reversed(range(_BODY_TRIES)):
                try:
                    return bytes(obstore.get_range(self._store, key, start=start, length=length))
                except (foreign.NotFoundError, FileNotFoundError) as error:
                    raise MissingObjectError(key) from error
                except (foreign.PermissionDeniedError, foreign.UnauthenticatedError):
                    raise
                except (foreign.BaseError, OSError):
                    size = self.size(key)
                    if size is None:
                        raise MissingObjectError(key) from None
                    if size <= start:
                        return b""
                    length = min(length, size - start)
                    if not left:
                        raise
                time.sleep(_BODY_PAUSE_SECONDS * (_BODY_TRIES - left))
        raise AssertionError

    def path_of(self, _key: str) -> str | None:
        return None

    def keys(self, prefix: str) -> Sequence[str]:
        with self._asking(f"list {prefix}"):
            pages = obstore.list(self._store, f"{prefix}/")
            return [item["path"].rpartition("/")[2] for page in pages for item in page]

    def _small(self, key: str, found: "obstore.GetResult") -> bytes:
        for left in reversed(range(_BODY_TRIES)):
            try:
                return bytes(found.bytes())
            except (foreign.BaseError, OSError):
                if not left:
                    raise
            time.sleep(_BODY_PAUSE_SECONDS)
            found = self._get(key)
        raise AssertionError

    def _get(self, key: str) -> "obstore.GetResult":
        try:
            return obstore.get(self._store, key)
        except (foreign.NotFoundError, FileNotFoundError) as error:
            raise MissingObjectError(key) from error

    # -- writing -----------------------------------------------------------------------------------

    def put_many(self, uploads: Iterable[Upload], on_sent: Callable[[Upload], None]) -> None:
        """What is under way holds at most some 64 MiB in memory."""
        pool = ThreadPoolExecutor(self.parallelism, thread_name_prefix="upload")
        room = _Room(_IN_FLIGHT_BYTES)
        under_way: set[Future[Upload]] = set()
        try:
            for upload in uploads:
                weight = min(upload.size, _SMALL_BYTES)
                while not room.enough_for(weight) or len(under_way) >= 2 * self.parallelism:
                    under_way = _collect(under_way, on_sent)
                room.take(weight)
                future = pool.submit(self._put, upload)
                future.add_done_callback(lambda _, weight=weight: room.give(weight))  # type: ignore[misc]
                under_way.add(future)
            while under_way:
                under_way = _collect(under_way, on_sent)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _put(self, upload: Upload) -> Upload:
        following: Upload | None = upload
        while following is not None:
            with self._asking(f"write {following.key}"):
                self._put_one(following)
            following = following.then
        return upload

    def _put_one(self, upload: Upload) -> None:
        if upload.size > _SMALL_BYTES:
            obstore.put(self._store, upload.key, upload.open(), max_concurrency=_PARTS_AT_ONCE)
            return
        data = b"".join(upload.open())
        mode = "overwrite" if upload.replace else "create"
        try:
            obstore.put(self._store, upload.key, data, mode=cast("Any", mode), use_multipart=False)
        except (foreign.AlreadyExistsError, foreign.PreconditionError, FileExistsError):
            return

    def swap(self, key: str, expected: bytes, new: bytes) -> bool:
        with self._asking(f"move {key}"):
            try:
                return self._swap(key, expected, new)
            except (foreign.PreconditionError, foreign.AlreadyExistsError, FileExistsError):
                # A repeated request finds what its lost first try has done.
                return self._current(key)[0] == new

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

    # -- faults ------------------------------------------------------------------------------------

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except (foreign.PermissionDeniedError, foreign.UnauthenticatedError) as error:
            raise refused(self._where, what, error) from error
        except (foreign.BaseError, OSError, _BadUrlError) as error:
            if isinstance(error, PermissionError):
                raise refused(self._where, what, error) from error
            raise away(self._where, what, error) from error


class _Room:
    """How many bytes may still be taken into memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

    def enough_for(self, size: int) -> bool:
        with self._lock:
            return not self._used or self._used + size <= self._limit

    def take(self, size: int) -> None:
        with self._lock:
            self._used += size

    def give(self, size: int) -> None:
        with self._lock:
            self._used -= size


def refused(where: str, what: str, error: Exception) -> FaultError:
    return fault(Reason.STORE_DENIED, f"The store {where} refuses to {what}: {first_line(error)}")


def away(where: str, what: str, error: Exception) -> FaultError:
    return fault(Reason.STORE_UNAVAILABLE, f"The store {where} cannot {what}: {first_line(error)}")


def _collect(
    under_way: set[Future[Upload]], on_sent: Callable[[Upload], None]
) -> set[Future[Upload]]:
    done, rest = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        on_sent(future.result())
    return rest

"""Where the store's objects lie: what every kind of place promises, and which one a URL names.

Keys are slash-separated and made by the store alone. Foreign exceptions become faults where they
enter. An object store is in `object_bucket.py`, a directory in `directory_bucket.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from executord.core.reasons import FaultError, Reason
from executord.files.faults import fault

CHUNK_BYTES = 1 << 20
_SCHEMES = {"file", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory"}


class MissingObjectError(Exception):
    """There is no object under that key, though the store answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An object to be written. `open` gives its bytes, and raises if they are not the right ones;
    `size` is in bytes. `replace` is set where a bad one has to go. `then` is written once this one
    is complete. `parts` are the sizes of what a caller counts in it, where that is not the object.
    """

    key: str
    size: int
    open: Callable[[], Iterable[bytes]]
    replace: bool = False
    then: "Upload | None" = None
    parts: Sequence[int] | None = field(default=None, compare=False)


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

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Fewer bytes where the object ends before; a cut reply is asked for again.

        Raises MissingObjectError.
        """
        ...

    def path_of(self, key: str) -> str | None:
        """Where another process on this node can read the object; None where it cannot."""
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


class LazyBucket:
    """Opened when it is first needed, and again until that works: a store may come late."""

    def __init__(self, url: str, options: Mapping[str, str], *, create: bool) -> None:
        self._open = partial(open_bucket, url, options, create=create, watched=True)
        self._opened: Bucket | None = None
        self.parallelism = 1 if url.startswith("file:") else 16

    def size(self, key: str) -> int | None:
        return self._bucket().size(key)

    def read(self, key: str) -> Iterator[bytes]:
        return self._bucket().read(key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self._bucket().read_range(key, start, length)

    def path_of(self, key: str) -> str | None:
        return self._bucket().path_of(key)

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


def open_bucket(
    url: str, options: Mapping[str, str], *, create: bool = False, watched: bool = False
) -> Bucket:
    """`create` makes the directory of a file:// store where it is missing. `watched` is for a
    daemon: a directory that stops answering becomes a fault in bounded time. Raises FaultError.
    """
    # Imported here, so that each kind of bucket can use what this module promises.
    from executord.files.store.directory_bucket import DirectoryBucket  # noqa: PLC0415
    from executord.files.store.object_bucket import ObjectBucket  # noqa: PLC0415
    from executord.files.store.watched_bucket import WatchedBucket  # noqa: PLC0415

    scheme, _, rest = url.partition("://")
    if scheme == "file":
        if not rest.startswith("/"):
            raise _no_store(f"{url} is not a store: after file:// comes a whole path")
        if not watched:
            return DirectoryBucket(Path(rest), create=create)
        return WatchedBucket(url, partial(DirectoryBucket, Path(rest), create=create))
    if scheme not in _SCHEMES:
        raise _no_store(
            f"{url} is not a store: it begins with none of {', '.join(sorted(_SCHEMES))}."
        )
    return ObjectBucket(url, options)


def _no_store(detail: str) -> FaultError:
    return fault(Reason.STORE_UNAVAILABLE, detail)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]

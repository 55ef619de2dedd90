"""Blobs on the node: file contents by digest, as ordinary files that snapshots link to.

`blobs-v1/aa/<hex>` is the file, `<hex>-x` the same with the executable bit: mode belongs to the
inode, so each has its own. They belong to the user whose containers edit copies of them, and the
overlay alone keeps those edits away.
"""

import errno
import hashlib
import itertools
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from executord.files.cache.layout import Layout
from executord.files.model import digests
from executord.files.system import disk

_MANY = 1024
_EXECUTABLE = "-x"


class BlobKey(NamedTuple):
    digest: str
    executable: bool

    @property
    def place(self) -> str:
        """The path below the blobs' folder."""
        name = self.digest[len(digests.PREFIX) :]
        return f"{name[:2]}/{name}{_EXECUTABLE if self.executable else ''}"


class WrongContentError(Exception):
    """Bytes that are not what their digest promises."""

    def __init__(self, digest: str, what: str) -> None:
        super().__init__(f"{digest} {what}")
        self.digest = digest


def verified(chunks: Iterable[bytes], digest: str, size: int) -> Iterator[bytes]:
    """Hand the chunks on; WrongContentError at the end, or as soon as there are too many bytes."""
    hasher = hashlib.sha256()
    seen = 0
    for chunk in chunks:
        seen += len(chunk)
        if seen > size:
            raise WrongContentError(digest, f"is longer than its {size} bytes")
        hasher.update(chunk)
        yield chunk
    if seen != size:
        raise WrongContentError(digest, f"has {seen} instead of {size} bytes")
    if digests.PREFIX + hasher.hexdigest() != digest:
        raise WrongContentError(digest, "has other content")


class Blobs:
    """The store. Its methods block; each may be called from any thread."""

    def __init__(self, layout: Layout, owner: tuple[int, int]) -> None:
        self._layout = layout
        self._owner = owner
        self._root = str(layout.blobs)
        self._pins: Counter[BlobKey] = Counter()
        self._lock = threading.Lock()
        self.count = 0
        self.bytes = 0

    def load(self) -> None:
        """Make the shards, and count what is there. Raises OSError."""
        for shard in range(256):
            Path(self._root, f"{shard:02x}").mkdir(mode=0o700, exist_ok=True)
        count = size = 0
        for _, facts in self.listing():
            count += 1
            size += disk.allocated(facts.st_size)
        with self._lock:
            self.count, self.bytes = count, size

    def path(self, key: BlobKey) -> str:
        return f"{self._root}/{key.place}"

    def has(self, key: BlobKey) -> bool:
        return os.path.exists(self.path(key))  # noqa: PTH110 - hot

    def missing(self, keys: Collection[BlobKey]) -> list[BlobKey]:
        """Those that are not here."""
        if len(keys) < _MANY:
            return [key for key in keys if not self.has(key)]
        here: set[str] = set()
        for shard in range(256):
            name = f"{shard:02x}"
            here.update(f"{name}/{entry}" for entry in os.listdir(f"{self._root}/{name}"))  # noqa: PTH208 - names are enough
        return [key for key in keys if key.place not in here]

    @contextmanager
    def pinned(self, keys: Collection[BlobKey]) -> Iterator[None]:
        """No sweep takes these away. Pin first, then look what is missing."""
        with self._lock:
            self._pins.update(iter(keys))  # of a mapping, Counter would add the values
        try:
            yield
        finally:
            with self._lock:
                for key in keys:
                    self._pins[key] -= 1
                    if self._pins[key] <= 0:
                        del self._pins[key]

    def listing(self) -> Iterator[tuple[BlobKey, os.stat_result]]:
        """Every blob that is here, in no order; those that go meanwhile are left out."""
        for shard in range(256):
            with os.scandir(f"{self._root}/{shard:02x}") as entries:
                for entry in entries:
                    key = _key_of(entry.name)
                    if key is None:
                        continue
                    try:
                        yield key, entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue

    def remove(self, keys: Iterable[BlobKey]) -> int:
        """Move to the trash what is not pinned; gives the bytes that the store holds less."""
        freed = 0
        for key in keys:
            path = Path(self.path(key))
            with self._lock:
                if key in self._pins:
                    continue
                try:
                    size = disk.allocated(path.stat().st_size)
                    path.rename(self._layout.trash / disk.unique_name())
                except FileNotFoundError:
                    continue
                self.count -= 1
                self.bytes -= size
            freed += size
        return freed

    def batch(self) -> "BlobBatch":
        return BlobBatch(self, self._layout, self._owner)

    def added(self, count: int, size: int) -> None:
        with self._lock:
            self.count += count
            self.bytes += size


class BlobBatch:
    """Blobs written aside, that all become visible and durable with `commit`.

    `write` may be called from several threads, `commit` and `abandon` by their owner alone.
    """

    def __init__(self, blobs: Blobs, layout: Layout, owner: tuple[int, int]) -> None:
        self._blobs = blobs
        self._owner = owner
        self._aside = layout.new_tmp()
        self._aside.mkdir(mode=0o700)
        self._written: dict[BlobKey, tuple[str, int]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._written)

    def write(self, key: BlobKey, size: int, chunks: Iterable[bytes]) -> None:
        """Raises WrongContentError (nothing is kept of it), OSError, and what `chunks` raises."""
        aside = self._new_file(verified(chunks, key.digest, size), key.executable)
        self._note(key, aside, size)

    def ingest(self, chunks: Iterable[bytes], *, executable: bool) -> tuple[BlobKey, int]:
        """Bytes whose digest is not known yet; gives key and size."""
        hasher = hashlib.sha256()
        size = 0

        def hashed() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                hasher.update(chunk)
                size += len(chunk)
                yield chunk

        aside = self._new_file(hashed(), executable)
        key = BlobKey(digests.PREFIX + hasher.hexdigest(), executable)
        self._note(key, aside, size)
        return key, size

    def _new_file(self, chunks: Iterable[bytes], executable: bool) -> str:  # noqa: FBT001
        aside = f"{self._aside}/{next(self._numbers)}"
        try:
            disk.write_new(aside, chunks, mode=0o755 if executable else 0o644)
            disk.chown_if_needed(aside, self._owner)
        except BaseException:
            _unlink(aside)
            raise
        return aside

    def _note(self, key: BlobKey, aside: str, size: int) -> None:
        with self._lock:
            before = self._written.setdefault(key, (aside, size))
            if before[0] == aside:
                self.bytes += size
                return
        _unlink(aside)

    def path(self, key: BlobKey) -> str:
        """Where the content can be read now, committed or not."""
        return self._written[key][0]

    def commit(self) -> None:
        """Synced, renamed, synced: durable and complete, or not there. Raises OSError."""
        if not self._written:
            self.abandon()
            return
        disk.sync_filesystem(self._aside)
        count = size = 0
        for key, (aside, key_size) in self._written.items():
            target = self._blobs.path(key)
            if not os.path.exists(target):  # noqa: PTH110 - hot
                count += 1
                size += disk.allocated(key_size)
            os.rename(aside, target)  # noqa: PTH104 - hot
        disk.sync_filesystem(self._aside)
        self._blobs.added(count, size)
        self._written.clear()
        self.bytes = 0
        self.abandon()

    def abandon(self) -> None:
        for aside, _ in self._written.values():
            _unlink(aside)
        self._written.clear()
        try:
            self._aside.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


def _key_of(name: str) -> BlobKey | None:
    executable = name.endswith(_EXECUTABLE)
    digest = digests.PREFIX + (name[: -len(_EXECUTABLE)] if executable else name)
    return BlobKey(digest, executable) if digests.is_digest(digest) else None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - hot
    except FileNotFoundError:
        return

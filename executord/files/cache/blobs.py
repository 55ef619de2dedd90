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
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from executord.files.cache.inodes import Inodes
from executord.files.cache.layout import Layout
from executord.files.cache.measure import SECTOR_BYTES
from executord.files.model import digests
from executord.files.system import disk

_MANY = 1024
_PARTIAL_SECONDS = 3 * 86_400.0
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
        self.owner = owner
        self._modes = (0o644, 0o755)
        self._root = str(layout.blobs)
        self._partial = layout.partials
        self._pins: Counter[BlobKey] = Counter()
        self._lock = threading.Lock()
        self.count = 0
        self.bytes = 0
        self.found_right = Inodes()  # hashed by this daemon, when written or since

    def protect(self) -> None:
        """From now on blobs are the daemon's and read-only, in a folder of their own: so runs may
        be given links to them. To be said before `load`. Raises OSError.
        """
        self._layout.read_only_blobs.mkdir(mode=0o700, exist_ok=True)
        self._root = str(self._layout.read_only_blobs)
        self.owner = (os.geteuid(), os.getegid())
        self._modes = (0o444, 0o555)

    @property
    def root(self) -> Path:
        return Path(self._root)

    @property
    def runs_link_to_them(self) -> bool:
        """Whether a run may have links to them, by which their bytes stay taken without them."""
        return self._root == str(self._layout.read_only_blobs)

    def mode_of(self, key: BlobKey) -> int:
        return self._modes[key.executable]

    def load(self, known: tuple[int, int] | None = None) -> None:
        """Make the shards, and count what is there, unless it is `known`: how many blobs, and how
        many bytes. Raises OSError.
        """
        for shard in range(256):
            Path(self._root, f"{shard:02x}").mkdir(mode=0o700, exist_ok=True)
        self._partial.mkdir(mode=0o700, exist_ok=True)
        self.forget_partials()
        if known is None:
            known = self.count_all()
        with self._lock:
            self.count, self.bytes = known

    def count_all(self, rest: Callable[[], None] | None = None) -> tuple[int, int]:
        """How many are there, and their bytes, one by one. `rest` is called now and then."""
        count = size = 0
        for _, facts in self.listing():
            count += 1
            size += disk.allocated(facts.st_size)
            if rest is not None and count % _MANY == 0:
                rest()
        return count, size

    def counted(self) -> tuple[int, int]:
        with self._lock:
            return self.count, self.bytes

    def correct(self, before: tuple[int, int], found: tuple[int, int]) -> bool:
        """`found` were counted since it was `before`. False where that has changed meanwhile."""
        with self._lock:
            if (self.count, self.bytes) != before:
                return False
            self.count, self.bytes = found
            return True

    def shard(self, number: int) -> str:
        """The directory of those whose digests begin with that byte."""
        return f"{self._root}/{number:02x}"

    def pinned_places(self) -> set[str]:
        """Those that no sweep takes now, as `BlobKey.place`."""
        with self._lock:
            return {key.place for key in self._pins}

    def path(self, key: BlobKey) -> str:
        return f"{self._root}/{key.place}"

    @staticmethod
    def key_at(name: str) -> BlobKey | None:
        """Whose file has that name; None for a stranger's."""
        return _key_of(name)

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

    def partial(self, key: BlobKey) -> str:
        """Where a large blob is put together, so that a killed download can be taken up again."""
        return f"{self._partial}/{key.place[3:]}"

    def forget_partials(self, *, idle_seconds: float = _PARTIAL_SECONDS) -> int:
        """Those that nobody has gone on with for so long, nor does now; gives the bytes freed."""
        now, freed = time.time(), 0
        for path in list(self._partial.iterdir()):
            key = _key_of(path.name)
            with self._lock:  # nobody begins to go on with it meanwhile: he pins it first
                if key is not None and key in self._pins:
                    continue
                try:
                    facts = path.stat()
                    if now - facts.st_mtime < idle_seconds:
                        continue
                    path.unlink()
                except FileNotFoundError:
                    continue
            freed += facts.st_blocks * SECTOR_BYTES
        return freed

    def batch(self) -> "BlobBatch":
        return BlobBatch(self, self._layout, self.owner)

    def added(self, count: int, size: int) -> None:
        with self._lock:
            self.count += count
            self.bytes += size


class _Written(NamedTuple):
    path: str
    size: int
    inode: int


class BlobBatch:
    """Blobs written aside, that all become visible and durable with `commit`.

    `write` may be called from several threads, `commit` and `abandon` by their owner alone.
    """

    def __init__(self, blobs: Blobs, layout: Layout, owner: tuple[int, int]) -> None:
        self._blobs = blobs
        self.owner = owner
        self._aside = layout.new_tmp()
        self._aside.mkdir(mode=0o700)
        self._written: dict[BlobKey, _Written] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._written)

    def write(self, key: BlobKey, size: int, chunks: Iterable[bytes]) -> None:
        """Raises WrongContentError (nothing is kept of it), OSError, and what `chunks` raises."""
        self._note(key, self._new_file(verified(chunks, key.digest, size), key.executable), size)

    def mode_of(self, key: BlobKey) -> int:
        return self._blobs.mode_of(key)

    def write_small(self, key: BlobKey, data: bytes) -> None:
        """Bytes that were found to be the digest's. Raises OSError."""
        path = self.new_path()
        try:
            inode = disk.write_small(path, data, mode=self.mode_of(key), owner=self.owner)
        except BaseException:
            _unlink(path)
            raise
        self._note(key, (path, inode), len(data))

    def new_path(self) -> str:
        """Where a file of this batch may be made."""
        return f"{self._aside}/{next(self._numbers)}"

    @property
    def folder(self) -> Path:
        return self._aside

    def adopt(self, key: BlobKey, size: int, path: str, inode: int) -> None:
        """A file in `folder` that is whole, checked, and has its owner and mode."""
        self._note(key, (path, inode), size)

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

        made = self._new_file(hashed(), executable)
        key = BlobKey(digests.PREFIX + hasher.hexdigest(), executable)
        self._note(key, made, size)
        return key, size

    def _new_file(self, chunks: Iterable[bytes], executable: bool) -> tuple[str, int]:  # noqa: FBT001
        aside = self.new_path()
        try:
            mode = self._blobs.mode_of(BlobKey("", executable))
            disk.write_new(aside, chunks, mode=mode)
            disk.chown_if_needed(aside, self.owner)
            return aside, os.stat(aside).st_ino  # noqa: PTH116 - hot
        except BaseException:
            _unlink(aside)
            raise

    def _note(self, key: BlobKey, made: tuple[str, int], size: int) -> None:
        path, inode = made
        with self._lock:
            before = self._written.setdefault(key, _Written(path, size, inode))
            if before.path == path:
                self.bytes += size
                return
        _unlink(path)

    def path(self, key: BlobKey) -> str:
        """Where the content can be read now, committed or not."""
        return self._written[key].path

    def commit(self) -> None:
        """Synced, renamed, synced: durable and complete, or not there. Raises OSError."""
        if not self._written:
            self.abandon()
            return
        disk.sync_filesystem(self._aside)
        count = size = 0
        for key, (aside, key_size, inode) in self._written.items():
            target = self._blobs.path(key)
            if not os.path.exists(target):  # noqa: PTH110 - hot
                count += 1
                size += disk.allocated(key_size)
            os.rename(aside, target)  # noqa: PTH104 - hot
            self._blobs.found_right.add(inode)
        disk.sync_filesystem(self._aside)
        self._blobs.added(count, size)
        self._written.clear()
        self.bytes = 0
        self.abandon()

    def abandon(self) -> None:
        """Also of what another process has made in the folder, and nobody has adopted."""
        self._written.clear()
        try:
            self._aside.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            for name in os.listdir(self._aside):  # noqa: PTH208 - names are enough
                _unlink(f"{self._aside}/{name}")
            self._aside.rmdir()


def _key_of(name: str) -> BlobKey | None:
    executable = name.endswith(_EXECUTABLE)
    digest = digests.PREFIX + (name[: -len(_EXECUTABLE)] if executable else name)
    return BlobKey(digest, executable) if digests.is_digest(digest) else None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - hot
    except FileNotFoundError:
        return

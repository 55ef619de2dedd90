"""Trees and revisions kept on the node. Each is checked against its digest whenever it is read,
so nothing has to be synced: one that a power cut has torn is simply not there.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from executord.files.model import digests, revisions, trees
from executord.files.model.trees import Tree
from executord.files.system import disk
from executord.ports import Revision

_RAW_BYTES = 48 << 20
_DECODED_BYTES = 8 << 20
_BYTES_AN_ITEM = 350  # the digest, the table's slot, the tuple

_Value = TypeVar("_Value")


class Objects:
    """Small immutable objects by digest. Blocks; safe in any thread."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)

    def get(self, digest: str) -> bytes | None:
        try:
            fd = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb", buffering=0) as file:
            data = file.readall()
        return data if digests.of_bytes(data) == digest else None

    def has(self, digest: str) -> bool:
        return os.path.exists(self._path(digest))  # noqa: PTH110 - hot

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Raises OSError."""
        for digest, data in objects.items():
            path = self._path(digest)
            if self.get(digest) is not None:
                continue
            Path(path).parent.mkdir(mode=0o700, exist_ok=True)
            disk.write_whole(path, data, durable=False)

    def all(self) -> Iterator[str]:
        for shard in Path(self._root).iterdir():
            for name in os.listdir(shard):  # noqa: PTH208 - names are enough
                if digests.is_digest(digests.PREFIX + name):
                    yield digests.PREFIX + name

    def keep_only(self, wanted: Iterable[str], *, older_than: float) -> int:
        """Forget all others that were made before then (Unix seconds); gives how many."""
        names = {digests.hex_of(digest) for digest in wanted}
        forgotten = 0
        for shard in Path(self._root).iterdir():
            with os.scandir(shard) as entries:
                for entry in entries:
                    if entry.name in names or entry.stat().st_mtime >= older_than:
                        continue
                    Path(entry.path).unlink()
                    forgotten += 1
        return forgotten

    def forget(self, digest: str) -> None:
        Path(self._path(digest)).unlink(missing_ok=True)

    def _path(self, digest: str) -> str:
        name = digests.hex_of(digest)
        return f"{self._root}/{name[:2]}/{name}"


class Trees:
    """Trees on the node, the recently used ones in memory: as they are written, and a few decoded.

    Only what has been checked comes in, so what comes out need only have its digest.
    """

    def __init__(self, root: Path) -> None:
        self.objects = Objects(root)
        self._raw: _Recent[bytes] = _Recent(_RAW_BYTES)
        self._decoded: _Recent[Tree] = _Recent(_DECODED_BYTES)

    def get(self, digest: str) -> Tree | None:
        if digest == trees.EMPTY_TREE:
            return ()
        found = self._decoded.get(digest)
        if found is None:
            data = self.raw(digest)
            if data is None:
                return None
            try:
                found = trees.decode_checked(data)
            except trees.BadTreeError:
                return None
            self._decoded.put(digest, found, trees.bytes_in_memory(found))
        return found

    def raw(self, digest: str) -> bytes | None:
        """As it is written: see `trees.encode`."""
        if digest == trees.EMPTY_TREE:
            return trees.EMPTY_TREE_BYTES
        data = self._raw.get(digest)
        if data is None:
            data = self.objects.get(digest)
            if data is not None:
                self._raw.put(digest, data, len(data))
        return data

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Each is what `trees.decode` has accepted, or `trees.encode` made. Raises OSError."""
        self.objects.put(objects)
        for digest, data in objects.items():
            self._raw.put(digest, data, len(data))


class _Recent(Generic[_Value]):
    """The least recently used go when all together take more than `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._items: OrderedDict[str, tuple[_Value, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> _Value | None:
        with self._lock:
            found = self._items.get(key)
            if found is None:
                return None
            self._items.move_to_end(key)
            return found[0]

    def put(self, key: str, value: _Value, size: int) -> None:
        size += _BYTES_AN_ITEM
        if size > self._most // 2:
            return
        with self._lock:
            if key in self._items:
                return
            self._items[key] = value, size
            self._bytes += size
            while self._bytes > self._most:
                _, (_, dropped) = self._items.popitem(last=False)
                self._bytes -= dropped


class Revisions:
    def __init__(self, root: Path) -> None:
        self.objects = Objects(root)

    def get(self, digest: str) -> Revision | None:
        data = self.objects.get(digest)
        if data is None:
            return None
        try:
            return revisions.decode(data)
        except revisions.BadRevisionError:
            return None

    def put(self, digest: str, data: bytes) -> None:
        self.objects.put({digest: data})

    def forget_others(self, roots: Collection[str], *, older_than: float) -> None:
        """Keep the revisions of these trees, and those made since then (Unix seconds)."""
        kept = []
        for digest in self.objects.all():
            found = self.get(digest)
            if found is not None and found.tree in roots:
                kept.append(digest)
        self.objects.keep_only(kept, older_than=older_than)

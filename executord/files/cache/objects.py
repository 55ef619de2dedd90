"""Trees and revisions kept on the node. Each is checked against its digest whenever it is read,
so nothing has to be synced: one that a power cut has torn is simply not there.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from executord.files.model import digests, revisions, trees
from executord.files.model.trees import Tree
from executord.files.system import disk
from executord.ports import Revision

_REMEMBERED_ENTRIES = 200_000


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

    def _path(self, digest: str) -> str:
        name = digests.hex_of(digest)
        return f"{self._root}/{name[:2]}/{name}"


class Trees:
    """Trees on the node, decoded, the recently used ones in memory."""

    def __init__(self, root: Path) -> None:
        self.objects = Objects(root)
        self._recent: OrderedDict[str, Tree] = OrderedDict()
        self._entries = 0
        self._lock = threading.Lock()

    def get(self, digest: str) -> Tree | None:
        if digest == trees.EMPTY_TREE:
            return ()
        with self._lock:
            found = self._recent.get(digest)
            if found is not None:
                self._recent.move_to_end(digest)
                return found
        data = self.objects.get(digest)
        if data is None:
            return None
        try:
            tree = trees.decode(data)
        except trees.BadTreeError:
            return None
        self._remember(digest, tree)
        return tree

    def put(self, objects: Mapping[str, bytes]) -> None:
        self.objects.put(objects)

    def _remember(self, digest: str, tree: Tree) -> None:
        with self._lock:
            if digest in self._recent:
                return
            self._recent[digest] = tree
            self._entries += len(tree) + 1
            while self._entries > _REMEMBERED_ENTRIES and len(self._recent) > 1:
                _, dropped = self._recent.popitem(last=False)
                self._entries -= len(dropped) + 1


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

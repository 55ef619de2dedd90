"""Which pack holds what: hints by root tree, indexes kept on the node, a listing as last resort.

    packs/data/aa/<hex>    the bytes of many objects, one after the other
    packs/index/<hex>      what lies where in it
    packs/hints/aa/<tree>  the packs that hold what is below a root tree, one a line

A hint is advice: where it is missing or incomplete, objects are looked for loose, then the packs
are listed. Indexes never change, so one that was fetched once is good for ever.
"""

import contextlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import structlog

from executord.core.reasons import FaultError
from executord.files.model import digests
from executord.files.store.bucket import Bucket, MissingObjectError
from executord.files.store.pack_index import MAX_INDEX_BYTES, BadIndexError, Location, PackIndex
from executord.files.system import disk
from executord.files.system.parallel import side_by_side

log = structlog.get_logger(__name__)

MOST_HINTED = 4096
_LOADED_BYTES = 32 << 20
_TABLES = 6
_LISTING_SECONDS = 10.0
_NO_HINT_SECONDS = 60.0
_HINTS_REMEMBERED = 1024
_KEPT_INDEXES = 20_000
_NAME = re.compile(r"[0-9a-f]{64}")


def data_key(pack: str) -> str:
    return f"packs/data/{pack[:2]}/{pack}"


def index_key(pack: str) -> str:
    return f"packs/index/{pack}"


class Packs:
    """All of it blocks; safe in any thread. `home` is where indexes are kept between starts."""

    def __init__(self, bucket: Bucket, home: Path | None) -> None:
        self._bucket = bucket
        self._home = home
        self._known: dict[str, None] = {}
        self._gone: set[str] = set()
        self._damaged: set[str] = set()
        self._loaded: OrderedDict[str, PackIndex] = OrderedDict()
        self._loaded_bytes = 0
        self._last: OrderedDict[str, None] = OrderedDict()
        self._hints: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()
        self._listed_at = float("-inf")
        self._opened = False
        self._lock = threading.RLock()
        self._listing = threading.Lock()

    # -- looking up --------------------------------------------------------------------------------

    def find(self, wanted: Iterable[str], *, beside: Collection[str] = ()) -> dict[str, Location]:
        """Those of the digests that a known pack holds, other than the packs in `beside`.

        Packs that were hit last come first, then those that were written after them: who reads in
        the order of the tree finds most of it where he is.
        """
        left = {bytes.fromhex(digest[len(digests.PREFIX) :]): digest for digest in wanted}
        found: dict[str, Location] = {}
        with self._lock:
            self._open()
            for pack in self._in_likely_order():
                if not left:
                    break
                if pack in self._gone or pack in beside:
                    continue
                index = self._load(pack)
                if index is None:
                    continue
                hits = list(index.find(left.keys()))
                for raw, location in hits:
                    found[left.pop(raw)] = location
                if hits:
                    self._note_hit(pack)
        return found

    def holders(self, wanted: Collection[bytes]) -> set[str]:
        """Packs that together hold those of the digests (32 bytes) that any known pack holds."""
        left = set(wanted)
        found: set[str] = set()
        with self._lock:
            self._open()
            for pack in self._in_likely_order():
                if not left:
                    break
                index = None if pack in self._gone else self._load(pack)
                hits = index.held(left) if index is not None else ()
                if hits:
                    left.difference_update(hits)
                    found.add(pack)
        return found

    def is_damaged(self, pack: str, size: int) -> bool:
        """Whether there is such a pack in the store, of another size or known to be bad."""
        there = self._bucket.size(data_key(pack))
        return there is not None and (there != size or pack in self._damaged)

    def whole(self, packs: Collection[str]) -> set[str]:
        """Those that are in the store with their index, of the size that it tells."""
        sizes = {}
        with self._lock:
            for pack in packs:
                index = self._load(pack)
                if index is not None and pack not in self._damaged:
                    sizes[pack] = index.pack_size

        def is_whole(pack: str) -> bool:
            there = self._bucket.size(data_key(pack))
            return there == sizes[pack] and self._bucket.size(index_key(pack)) is not None

        asked = side_by_side(self._bucket.parallelism, list(sizes), is_whole)
        return {pack for pack, good in asked if good}

    def bytes_of(self, packs: Collection[str]) -> int:
        with self._lock:
            loaded = [self._load(pack) for pack in packs]
        return sum(index.pack_size for index in loaded if index is not None)

    def distrust(self, pack: str, *, gone: bool) -> None:
        """Sending its objects again will mend it. One that is `gone` is looked into no more."""
        with self._lock:
            known = pack in self._damaged
            self._damaged.add(pack)
            if gone:
                self._gone.add(pack)
        if not known:
            log.warning("store.pack_damaged", pack=pack, gone=gone)

    # -- learning ----------------------------------------------------------------------------------

    def learn(self, root: str) -> tuple[str, ...]:
        """The packs that the hint of a root tree names; their indexes are known afterwards."""
        with self._lock:
            seen, packs = self._hints.get(root, (float("-inf"), ()))
            if packs or time.monotonic() - seen < _NO_HINT_SECONDS:
                return packs
        packs = self._read_hint(root)
        self._fetch(packs)
        self._remember_hint(root, packs)
        return packs

    def refresh(self) -> None:
        """List the store's packs; who asks again within seconds is told what was found then."""
        with self._listing:
            if time.monotonic() - self._listed_at < _LISTING_SECONDS:
                return
            names = self._bucket.keys("packs/index")
            self._fetch([name for name in names if _NAME.fullmatch(name)])
            self._listed_at = time.monotonic()

    def intend(self, data: bytes) -> None:
        """An index that is about to be written: after a kill the next push asks for its pack."""
        self._write(PackIndex(data))

    def add(self, data: bytes) -> None:
        """An index that was just written, with its pack."""
        index = PackIndex(data)
        with self._lock:
            self._open()
            self._gone.discard(index.pack)
            self._damaged.discard(index.pack)
            self._keep(index)
            self._note_hit(index.pack)

    def add_if_there(self, data: bytes) -> None:
        index = PackIndex(data)
        with contextlib.suppress(FaultError):
            if (
                self._bucket.size(data_key(index.pack)) == index.pack_size
                and self._bucket.size(index_key(index.pack)) is not None
            ):
                self.add(data)

    def hint(self, root: str, packs: Sequence[str]) -> None:
        """Say where to look for a tree; never takes anything back that somebody else has said."""
        wanted = list(dict.fromkeys(packs))[-MOST_HINTED:]
        if not wanted:
            return
        key = _hint_key(root)
        for _ in range(3):
            before = self._raw_hint(root)
            if before and set(wanted) <= set(_packs_in(before)):
                break
            both = list(dict.fromkeys((*_packs_in(before), *wanted)))[-MOST_HINTED:]
            if self._bucket.swap(key, before, "".join(f"{name}\n" for name in both).encode()):
                break
        self._remember_hint(root, tuple(wanted))

    # -- parts -------------------------------------------------------------------------------------

    def _read_hint(self, root: str) -> tuple[str, ...]:
        return _packs_in(self._raw_hint(root))

    def _raw_hint(self, root: str) -> bytes:
        try:
            return _limited(self._bucket, _hint_key(root), MOST_HINTED * 66)
        except MissingObjectError:
            return b""

    def _remember_hint(self, root: str, packs: tuple[str, ...]) -> None:
        with self._lock:
            self._hints[root] = (time.monotonic(), packs)
            while len(self._hints) > _HINTS_REMEMBERED:
                self._hints.popitem(last=False)

    def _fetch(self, packs: Sequence[str]) -> None:
        with self._lock:
            self._open()
            missing = [pack for pack in packs if pack not in self._known]
        for pack, data in side_by_side(self._bucket.parallelism, missing, self._download):
            if data is None:
                continue
            try:
                index = PackIndex(data)
            except BadIndexError as error:
                log.warning("store.index_damaged", pack=pack, error=str(error))
                continue
            with self._lock:
                if index.pack == pack:
                    self._keep(index)

    def _download(self, pack: str) -> bytes | None:
        try:
            return _limited(self._bucket, index_key(pack), MAX_INDEX_BYTES)
        except MissingObjectError:
            return None

    def _in_likely_order(self) -> list[str]:
        recent = list(reversed(self._last))
        if not recent:
            return list(self._known)
        known = list(self._known)
        after = known.index(recent[0]) if recent[0] in self._known else 0
        return list(dict.fromkeys((*recent, *known[after:], *known[:after])))

    def _note_hit(self, pack: str) -> None:
        self._last[pack] = None
        self._last.move_to_end(pack)
        while len(self._last) > _TABLES:
            old, _ = self._last.popitem(last=False)
            if old in self._loaded:
                self._loaded[old].forget_table()

    def _load(self, pack: str) -> PackIndex | None:
        index = self._loaded.get(pack)
        if index is not None:
            self._loaded.move_to_end(pack)
            return index
        index = self._read(pack)
        if index is None or index.pack != pack:
            self._known.pop(pack, None)
            return None
        self._hold(index)
        return index

    def _read(self, pack: str) -> PackIndex | None:
        """From the node, else from the store."""
        if self._home is not None:
            with contextlib.suppress(OSError, BadIndexError):
                return PackIndex(self._path(pack).read_bytes())
        data = self._download(pack)
        with contextlib.suppress(BadIndexError):
            return None if data is None else PackIndex(data)
        return None

    def _keep(self, index: PackIndex) -> None:
        if index.pack not in self._known:
            self._write(index)
        self._known[index.pack] = None
        self._hold(index)

    def _write(self, index: PackIndex) -> None:
        """Without syncing: each is checked when it is read. Losing one costs a request."""
        if self._home is None:
            return
        with contextlib.suppress(OSError):
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk.write_whole(self._path(index.pack), index.data, durable=False, mode=0o600)

    def _hold(self, index: PackIndex) -> None:
        if index.pack in self._loaded:
            return
        self._loaded[index.pack] = index
        self._loaded_bytes += len(index.data)
        while self._loaded_bytes > _LOADED_BYTES and len(self._loaded) > 1:
            _, old = self._loaded.popitem(last=False)
            self._loaded_bytes -= len(old.data)

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        if self._home is None:
            return
        with contextlib.suppress(OSError):
            with os.scandir(self._home) as entries:
                found = [entry for entry in entries if _NAME.fullmatch(entry.name)]
            found.sort(key=lambda entry: entry.stat().st_mtime_ns)
            for entry in found[:-_KEPT_INDEXES]:
                Path(entry.path).unlink(missing_ok=True)
            self._known.update((entry.name, None) for entry in found[-_KEPT_INDEXES:])

    def _path(self, pack: str) -> Path:
        assert self._home is not None
        return self._home / pack


def _packs_in(data: bytes) -> tuple[str, ...]:
    lines = data.decode(errors="replace").split()[:MOST_HINTED]
    return tuple(line for line in lines if _NAME.fullmatch(line))


def _hint_key(root: str) -> str:
    name = digests.hex_of(root)
    return f"packs/hints/{name[:2]}/{name}"


def _limited(bucket: Bucket, key: str, limit: int) -> bytes:
    pieces = []
    size = 0
    for piece in bucket.read(key):
        size += len(piece)
        if size > limit:
            raise MissingObjectError(key)
        pieces.append(piece)
    return b"".join(pieces)

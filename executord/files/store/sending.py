"""Into the store: small objects by the pack, large ones alone, what is there already not at all."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from executord.files.cache.blobs import WrongContentError, verified
from executord.files.model import digests
from executord.files.store.bucket import Bucket, Upload
from executord.files.store.pack_index import Kind
from executord.files.store.pack_reader import by_pack
from executord.files.store.pack_writer import SMALL_BYTES, WORTH_A_PACK, PackWriter
from executord.files.store.packs import Packs
from executord.files.system.parallel import side_by_side

_SHARD = 2
_MOST_ASKED = 512
_LARGE_TREE_BYTES = 4 << 20
_ROOTS_REMEMBERED = 256
_DIGEST = re.compile(rb'"sha256:([0-9a-f]{64})"')
_RAW = 32
_NOTED_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob to be sent. `open` gives its bytes afresh each time."""

    digest: str
    size: int
    open: Callable[[], Iterable[bytes]]


def loose_key(folder: str, digest: str) -> str:
    name = digests.hex_of(digest)
    return f"{folder}/{name[:_SHARD]}/{name}"


class Sender:
    """Blocks; safe in any thread."""

    def __init__(self, bucket: Bucket, packs: Packs) -> None:
        self._bucket = bucket
        self._packs = packs
        self._needs: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def absent_blobs(self, sizes: Mapping[str, int]) -> dict[str, bool]:
        """Those that have to be sent; True where a damaged one (of another size) is in the way.

        Where asking for each would take longer than sending them in packs, small ones are not
        asked for: what a pack holds twice costs room, and nothing else.
        """
        rest = self._not_packed(sizes)
        asked = rest
        absent: dict[str, bool] = {}
        if self._bucket.parallelism > 1 and len(rest) > _MOST_ASKED:
            asked = [digest for digest in rest if sizes[digest] > SMALL_BYTES]
            absent = {digest: False for digest in rest if sizes[digest] <= SMALL_BYTES}
        for digest, there in self._sizes("blobs", asked):
            if there != sizes[digest]:
                absent[digest] = there is not None
        return absent

    def put_blobs(
        self, blobs: Iterable[NewBlob], on_sent: Callable[[int], None], damaged: frozenset[str]
    ) -> None:
        writer = PackWriter(Kind.BLOB, self._packs)

        def told(upload: Upload) -> None:
            for size in (upload.size,) if upload.parts is None else upload.parts:
                on_sent(size)

        try:
            self._bucket.put_many(_uploads(blobs, damaged, writer), told)
        finally:
            writer.settle()

    def put_trees(self, objects: Mapping[str, bytes], *, again: bool) -> None:
        """`again` writes also those that a pack holds."""
        new = list(objects) if again else self._not_packed(objects)
        writer = PackWriter(Kind.TREE, self._packs)
        packed: Sequence[str] = ()
        if len(new) >= WORTH_A_PACK:
            packed = [digest for digest in new if len(objects[digest]) <= _LARGE_TREE_BYTES]
        loose = sorted(set(new).difference(packed))
        if packed:
            self._send(_tree_uploads(packed, objects, writer), writer)
        self.put_loose("trees", {digest: objects[digest] for digest in loose})
        self._note_needs(objects)

    def put_loose(self, folder: str, objects: Mapping[str, bytes]) -> None:
        uploads = [
            Upload(
                key=loose_key(folder, digest),
                size=len(objects[digest]),
                open=_given(objects[digest]),
                replace=there is not None,
            )
            for digest, there in self._sizes(folder, list(objects))
            if there != len(objects[digest])
        ]
        if uploads:
            self._bucket.put_many(uploads, lambda _: None)

    def hint(self, tree: str, bases: Iterable[str]) -> None:
        """Say which packs hold what is below a tree: those of the trees that it was made from, and
        those just written.
        """
        needs = self._needs.get(tree, ())
        before = [pack for base in bases for pack in self._packs.learn(base)]
        packs = list(dict.fromkeys((*before, *needs)))
        if packs and packs != list(self._packs.learn(tree)):
            self._packs.hint(tree, packs)

    # -- parts -------------------------------------------------------------------------------------

    def _not_packed(self, wanted: Iterable[str]) -> list[str]:
        every = list(wanted)
        located = self._packs.find(every)
        if not located:
            return every
        whole = self._packs.whole(by_pack(located))
        return [name for name in every if name not in located or located[name].pack not in whole]

    def _send(self, uploads: Iterator[Upload], writer: PackWriter) -> None:
        try:
            self._bucket.put_many(uploads, lambda _: None)
        finally:
            writer.settle()

    def _note_needs(self, objects: Mapping[str, bytes]) -> None:
        """Which packs the roots among these trees stand in, with all that these trees name."""
        roots = {bytes.fromhex(digests.hex_of(tree)): tree for tree in objects}
        packs: set[str] = set()
        waiting = set(roots)
        for data in objects.values():
            named = bytes.fromhex(b"".join(_DIGEST.findall(data)).decode())
            below = {named[at : at + _RAW] for at in range(0, len(named), _RAW)}
            for tree in below & roots.keys():
                del roots[tree]
            waiting |= below
            if len(waiting) >= _NOTED_AT_ONCE:
                packs |= self._packs.holders(waiting)
                waiting.clear()
        packs |= self._packs.holders(waiting)
        for root in roots.values():
            self._needs[root] = tuple(sorted(packs))
        while len(self._needs) > _ROOTS_REMEMBERED:
            self._needs.popitem(last=False)

    def _sizes(self, folder: str, names: Sequence[str]) -> Iterator[tuple[str, int | None]]:
        return side_by_side(
            self._bucket.parallelism,
            names,
            lambda digest: self._bucket.size(loose_key(folder, digest)),
        )


def _uploads(
    blobs: Iterable[NewBlob], damaged: frozenset[str], writer: PackWriter
) -> Iterator[Upload]:
    """A few small ones stay loose, as does one that has to mend a loose one."""
    waiting: list[NewBlob] = []
    packing = False
    for blob in blobs:
        if blob.size > SMALL_BYTES or blob.digest in damaged:
            yield _loose(blob, replace=blob.digest in damaged)
            continue
        waiting.append(blob)
        packing = packing or len(waiting) >= WORTH_A_PACK
        if packing:
            for small in waiting:
                yield from writer.add(small.digest, _content(small))
            waiting.clear()
    for small in waiting:
        yield _loose(small, replace=False)
    yield from writer.flush()


def _tree_uploads(
    names: Iterable[str], objects: Mapping[str, bytes], writer: PackWriter
) -> Iterator[Upload]:
    for digest in names:
        yield from writer.add(digest, objects[digest])
    yield from writer.flush()


def _loose(blob: NewBlob, *, replace: bool) -> Upload:
    return Upload(
        key=loose_key("blobs", blob.digest),
        size=blob.size,
        open=lambda: verified(blob.open(), blob.digest, blob.size),
        replace=replace,
    )


def _content(blob: NewBlob) -> bytes:
    """All of a small blob. Raises WrongContentError."""
    pieces = []
    size = 0
    for piece in blob.open():
        size += len(piece)
        if size > blob.size:
            raise WrongContentError(blob.digest, f"is longer than its {blob.size} bytes")
        pieces.append(piece)
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if size != blob.size:
        raise WrongContentError(blob.digest, f"has {size} instead of {blob.size} bytes")
    if digests.PREFIX + hashlib.sha256(data).hexdigest() != blob.digest:
        raise WrongContentError(blob.digest, "has other content")
    return data


def _given(data: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: (data,)

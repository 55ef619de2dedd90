"""Many small objects into few large ones: packs of some 16 MiB, named by their content."""

import hashlib
from collections.abc import Iterator

from executord.files.model import digests
from executord.files.store import pack_index
from executord.files.store.bucket import Upload
from executord.files.store.pack_index import Kind, Packed
from executord.files.store.packs import Packs, data_key, index_key

PACK_BYTES = 16 << 20
SMALL_BYTES = 256 << 10
WORTH_A_PACK = 32
"""Fewer objects than this stay loose: a pack of few is only one more thing to look at."""


class PackWriter:
    """Takes objects in the order in which they will be read; gives uploads, a pack with its index.

    The index goes up once the pack is whole: a pack that is cut off from its index is not there
    for anybody, and the same push, done again, makes the same one. `made` has the indexes of the
    packs given out.
    """

    def __init__(self, kind: Kind, packs: Packs) -> None:
        self._kind = kind
        self._packs = packs
        self._pieces: list[bytes] = []
        self._listed: dict[bytes, Packed] = {}
        self._size = 0
        self.made: list[bytes] = []

    def add(self, digest: str, data: bytes) -> Iterator[Upload]:
        """What has become full with it. The caller has checked that the bytes are the digest's."""
        raw = bytes.fromhex(digests.hex_of(digest))
        if raw in self._listed:
            return
        if self._pieces and self._size + len(data) > PACK_BYTES:
            yield from self.flush()
        self._listed[raw] = Packed(raw, self._size, len(data), self._kind)
        self._pieces.append(data)
        self._size += len(data)

    def flush(self) -> Iterator[Upload]:
        if not self._pieces:
            return
        pieces, listed, size = self._pieces, list(self._listed.values()), self._size
        self._pieces, self._listed, self._size = [], {}, 0
        hasher = hashlib.sha256()
        for piece in pieces:
            hasher.update(piece)
        name = hasher.hexdigest()
        index = pack_index.encode(hasher.digest(), size, listed)
        self._packs.intend(index)
        self.made.append(index)
        yield Upload(
            key=data_key(name),
            size=size,
            open=lambda: pieces,
            replace=self._packs.is_damaged(name, size),
            then=Upload(key=index_key(name), size=len(index), open=lambda: (index,), replace=False),
            parts=tuple(entry.size for entry in listed),
        )

    def settle(self) -> None:
        """After the sending, also one that failed: what is in the store is known from now on."""
        for index in self.made:
            self._packs.add_if_there(index)

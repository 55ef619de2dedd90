"""Objects out of packs: neighbours in one request, many requests at once, every object checked."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from executord.core.reasons import FaultError
from executord.files.faults import corrupt
from executord.files.model import digests
from executord.files.store.bucket import Bucket, MissingObjectError
from executord.files.store.pack_index import Location
from executord.files.store.packs import Packs, data_key
from executord.files.system.parallel import side_by_side

RANGE_BYTES = 2 << 20
_GAP_BYTES = 64 << 10


class Span(NamedTuple):
    """A piece of a pack to be read at once, and what is wanted of it."""

    pack: str
    start: int
    length: int
    objects: Sequence[tuple[str, Location]]


def spans(located: Mapping[str, Location], limit: int = RANGE_BYTES) -> list[Span]:
    """In the packs' own order; small gaps are read over, none is longer than `limit` bytes but
    for a single object.
    """
    made: list[Span] = []
    objects: list[tuple[str, Location]] = []
    pack, start, end = "", 0, 0
    for digest, at in sorted(located.items(), key=lambda pair: pair[1]):
        if objects and (
            at.pack != pack
            or at.offset > end + _GAP_BYTES
            or max(end, at.offset + at.size) - start > limit
        ):
            made.append(Span(pack, start, end - start, objects))
            objects = []
        if not objects:
            pack, start, end = at.pack, at.offset, at.offset
        objects.append((digest, at))
        end = max(end, at.offset + at.size)
    if objects:
        made.append(Span(pack, start, end - start, objects))
    return made


class PackReader:
    """Blocks; safe in any thread."""

    def __init__(self, url: str, bucket: Bucket, packs: Packs) -> None:
        self._url = url
        self._bucket = bucket
        self._packs = packs

    def read(self, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """What known packs can give of it, checked, in no promised order. What is damaged in one
        pack is looked for in others; the rest is left out.
        """
        left = list(wanted)
        tried: set[str] = set()
        while left:
            located = self._packs.find(left, beside=tried)
            left = []
            for span, pieces in side_by_side(
                self._bucket.parallelism, spans(located), self._checked
            ):
                for digest, data in pieces:
                    if data is None:
                        left.append(digest)
                        tried.add(span.pack)
                    else:
                        yield digest, data

    def explain(self, digest: str) -> FaultError | None:
        """Why an object that a pack should hold is not to be had from there."""
        location = self._packs.find((digest,)).get(digest)
        if location is None:
            return None
        return corrupt(
            f"The pack {location.pack} in the store {self._url} is damaged: it lacks {digest}."
        )

    def _checked(self, span: Span) -> Sequence[tuple[str, bytes | None]]:
        try:
            data = self._bucket.read_range(data_key(span.pack), span.start, span.length)
        except MissingObjectError:
            self._packs.distrust(span.pack, gone=True)
            return [(digest, None) for digest, _ in span.objects]
        view = memoryview(data)
        found: list[tuple[str, bytes | None]] = []
        for digest, at in span.objects:
            piece = view[at.offset - span.start :][: at.size]
            good = digests.PREFIX + hashlib.sha256(piece).hexdigest() == digest
            found.append((digest, bytes(piece) if good else None))
        if any(piece is None for _, piece in found):
            self._packs.distrust(span.pack, gone=False)
        return found


def by_pack(located: Mapping[str, Location]) -> Collection[str]:
    return {location.pack for location in located.values()}

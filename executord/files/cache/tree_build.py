"""One tree made ready, as a layer on what is near or as a whole snapshot, a part at a time.

Trees are walked a few directories at a time and files are linked as they come; only those whose
blobs are not here wait in memory until there are enough of them to be fetched together. So what it
takes does not grow with the tree, but for some bytes a file.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.chain_blobs import ChainBlobs
from executord.files.cache.grounds import About, Ground
from executord.files.cache.nearest import Near, Nearest, Prices
from executord.files.cache.objects import Trees
from executord.files.cache.planting import Bed, Planting
from executord.files.cache.records import GROUPED
from executord.files.cache.snapshots import Snapshots
from executord.files.faults import CancelledWorkError, corrupt, disk
from executord.files.model import trees
from executord.files.model.closure import key_of
from executord.files.model.delta import Difference
from executord.files.model.trees import Entry, Tree
from executord.files.model.walk import Claim, walk
from executord.files.progress import Counter
from executord.files.system import disk as disks
from executord.ports import Progress

_ASK_AT_ONCE = 1000
_TRIES = 3


class Source(Protocol):
    """Where trees and blobs come from; see `transfer.Fetcher`."""

    def trees(self, wanted: Sequence[str]) -> dict[str, Tree]: ...
    def blobs(
        self, sizes: Mapping[BlobKey, int], counter: Counter, cancelled: threading.Event
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Made:
    """`why` says for a person which way was taken and for what reason."""

    about: About
    files_fetched: int
    bytes_fetched: int
    why: str = ""

    @property
    def way(self) -> str:
        return "layer" if self.about.depth else "farm"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTools:
    source: Source
    blobs: Blobs
    trees: Trees
    snapshots: Snapshots
    make_room: Callable[[int, int], None]  # bytes and inodes to come
    room_taken: Callable[[int, int], None] = lambda _bytes, _inodes: None  # of these, by now
    prices: Prices = field(default_factory=Prices)


Beds = Callable[[bool], Iterator[Bed]]
"""Called with whether to go level by level, asking for many trees at once."""


@dataclass(slots=True)
class TreeBuild:
    """Blocks. `tell` hears how far it is. `likely` are trees that may be near."""

    tools: BuildTools
    tree: str
    tell: Callable[[Progress], None]
    cancelled: threading.Event
    likely: Sequence[str] = ()
    _fetched: dict[str, int] = field(default_factory=lambda: {"files": 0, "bytes": 0})
    _fetching: Counter | None = None

    def run(self, *, whole: bool = False) -> Made:
        """Raises FaultError, CancelledWorkError; leaves nothing half-made, and may be run again."""
        self._fetching = None
        with ExitStack() as stack:
            near = None if whole else self._choose(stack)
            about = self._snapshot() if near is None else self._layer(near)
        return Made(about, self._fetched["files"], self._fetched["bytes"], _why(about, near))

    # -- on what is near ---------------------------------------------------------------------------

    def _choose(self, stack: ExitStack) -> Near | None:
        """What it is laid upon is pinned until `stack` ends."""
        snapshots = self.tools.snapshots
        nearest = Nearest(snapshots, self.tools.trees, self._raw, self.tools.prices)
        near = nearest.choose(self.tree, self.likely)
        if near is None:
            return None
        holder = f"build {disks.unique_name()}"
        snapshots.pin(near.ground.tree, holder)
        stack.callback(snapshots.unpin, holder)
        with disk("look for the snapshot"):
            found = snapshots.find(near.ground.tree, near.ground.kind)
        return near if found == near.about else None

    def _layer(self, near: Near) -> About:
        difference = near.difference
        chain = self.tools.snapshots.chain(near.ground)
        with ChainBlobs(self.tools.snapshots, chain) as below:
            return self._build(
                "layer",
                lambda by_level: self._layer_beds(difference, by_level=by_level),
                held_below=below.hold,
                near=near,
            )

    def _layer_beds(self, difference: Difference, *, by_level: bool) -> Iterator[Bed]:
        for delta in difference.root.walk():
            merged = [each.entry for each in delta.merged if each.entry is not None]
            yield Bed(delta.path, delta.digest, [*delta.made, *merged], delta.whiteouts)
            for entry in delta.made:
                if entry.is_directory:
                    path = f"{delta.path}/{entry.name}" if delta.path else entry.name
                    claim = Claim(entry.size, entry.count)
                    for bed in self._beds(entry.digest, path, claim, by_level=by_level):
                        hides = bed.path == path and entry.name in delta.replaced
                        yield bed._replace(opaque=True) if hides else bed

    # -- whole -------------------------------------------------------------------------------------

    def _snapshot(self) -> About:
        return self._build("snapshot", lambda by_level: self._beds(self.tree, by_level=by_level))

    def _beds(
        self, tree: str, path: str = "", claim: Claim | None = None, *, by_level: bool
    ) -> Iterator[Bed]:
        found = walk(
            tree,
            self.tools.source.trees,
            self.cancelled,
            path=path,
            claim=claim,
            level_by_level=by_level,
        )
        for directory in found:
            yield Bed(directory.path, directory.digest, directory.tree)

    # -- both --------------------------------------------------------------------------------------

    def _build(
        self,
        kind: str,
        beds: Beds,
        *,
        held_below: Callable[[BlobKey], bool] | None = None,
        near: Near | None = None,
    ) -> About:
        began = time.monotonic()
        snapshots = self.tools.snapshots
        aside = snapshots.layout.new_tmp()
        try:
            with disk("make the run's files ready"):
                aside.mkdir(mode=0o700)
                with Planting(
                    aside / "root", snapshots.blobs, snapshots.owner, held_below=held_below
                ) as planting:
                    self._plant(planting, beds)
                    planting.records.write(aside / "blobs")
                (aside / "trees").write_bytes(planting.tree_names)
                about = self._about(planting, near, time.monotonic() - began)
                ground = Ground("layer" if kind == "layer" else "snapshot", self.tree)
                return snapshots.publish(aside, ground, about)
        except BaseException:
            snapshots.layout.throw_away(aside)
            raise

    def _plant(self, planting: Planting, beds: Beds) -> None:
        counter = Counter("linking files", self.tell)
        for bed in beds(False):
            if self.cancelled.is_set():
                raise CancelledWorkError
            if not bed.path:
                size, count = trees.totals(bed.entries)
                counter.expect(count, size)
            planting.make(bed)
            if self._fetching is None and not planting.absent:
                counter.add(len(bed.entries), planting.bytes - counter.bytes)
            if planting.is_much_absent:
                self._make_absent(planting, beds)
        if planting.absent:
            self._make_absent(planting, beds)
        (self._fetching or counter).done()

    def _make_absent(self, planting: Planting, beds: Beds) -> None:
        """Fetch what could not be linked to, then link to it."""
        sizes = _sizes(each.entry for each in planting.absent)
        with self.tools.blobs.pinned(sizes):
            for _ in range(_TRIES):
                missing = {key: sizes[key] for key in self._missing(sizes)}
                if missing:
                    self._fetch(missing, beds)
                planting.make_absent()
                if not planting.absent:
                    return
                sizes = _sizes(each.entry for each in planting.absent)
        raise corrupt(f"The file content {next(iter(sizes)).digest} vanishes from the cache.")

    def _missing(self, sizes: Mapping[BlobKey, int]) -> Iterator[BlobKey]:
        keys = iter(sizes)
        while some := list(islice(keys, _ASK_AT_ONCE)):
            yield from self.tools.blobs.missing(some)

    def _fetch(self, missing: Mapping[BlobKey, int], beds: Beds) -> None:
        taken = sum(disks.allocated(size) for size in missing.values())
        if self._fetching is None:
            files, size, allocated, inodes = self._survey(beds)
            self.tools.make_room(allocated, inodes)
            self._fetching = Counter(
                "fetching files", self.tell, files_total=files, bytes_total=size
            )
        else:
            self.tools.make_room(taken, len(missing))
        self.tools.source.blobs(missing, self._fetching, self.cancelled)
        self.tools.room_taken(taken, len(missing))
        self._fetched["files"] += len(missing)
        self._fetched["bytes"] += sum(missing.values())

    def _survey(self, beds: Beds) -> tuple[int, int, int, int]:
        """Files and bytes that are not here, what they will take on disk, and all inodes that are
        to be made. All trees are here afterwards.
        """
        seen: set[int] = set()
        files = size = allocated = inodes = 0
        for bed in beds(True):
            sizes: dict[BlobKey, int] = {}
            inodes += 1 + len(bed.whiteouts) + sum(not entry.digest for entry in bed.entries)
            for entry in bed.entries:
                if entry.is_file:
                    key = key_of(entry)
                    mark = hash(key)
                    if mark not in seen:
                        seen.add(mark)
                        sizes[key] = entry.size
            for key in self._missing(sizes):
                files += 1
                size += sizes[key]
                allocated += disks.allocated(sizes[key])
        return files, size, allocated, files + inodes

    def _raw(self, wanted: Sequence[str]) -> list[bytes]:
        """Trees as written; those that are not here are fetched together."""
        local = self.tools.trees
        found = {digest: local.raw(digest) for digest in wanted}
        absent = [digest for digest, data in found.items() if data is None]
        if absent:
            self.tools.source.trees(absent)
            found.update({digest: local.raw(digest) for digest in absent})
        result = []
        for digest in wanted:
            data = found[digest]
            if data is None:
                raise corrupt(f"The tree {digest} vanishes from the cache.")
            result.append(data)
        return result

    def _about(self, planting: Planting, near: Near | None, seconds: float) -> About:
        if near is None:
            (root,) = self._raw([self.tree])
            size, count = trees.totals(trees.decode_checked(root))
            directories = planting.directories
        else:
            size, count = near.difference.claim
            merged = sum(1 for _ in near.difference.root.walk())
            directories = near.about.directories + planting.directories - merged
            directories -= self._directories_gone(near.difference)
        return About(
            files=count - (directories - 1),
            bytes=size,
            directories=directories,
            own_bytes=planting.own_bytes,
            own_inodes=planting.own_inodes,
            entries=planting.entries,
            made_at=time.time(),
            made_in_seconds=seconds,
            records=GROUPED,
            base=near.ground.tree if near is not None else "",
            base_kind=near.ground.kind if near is not None else "snapshot",
            base_id=near.about.id if near is not None else "",
            depth=near.about.depth + 1 if near is not None else 0,
        )

    def _directories_gone(self, difference: Difference) -> int:
        pending = [
            entry for delta in difference.root.walk() for entry in delta.gone if entry.is_directory
        ]
        gone = 0
        while pending:
            entry = pending.pop()
            gone += 1
            below = self.tools.trees.get(entry.digest) or ()  # all of it is here but for accidents
            pending.extend(each for each in below if each.is_directory)
        return gone


def _sizes(entries: Iterable[Entry]) -> dict[BlobKey, int]:
    return {key_of(entry): entry.size for entry in entries}


def _why(about: About, near: Near | None) -> str:
    if near is None:
        return f"nothing near is here: all {about.entries_in_all} entries were made"
    base = near.ground.tree[len("sha256:") :][:12]
    return (
        f"{about.entries} of {about.entries_in_all} entries laid over {near.ground.kind} {base}, "
        f"{about.depth} deep"
    )

"""A look at everything that the cache holds: trees, the most recently used first, then blobs that
no tree has led to, then the small objects.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Literal

from executord.core.reasons import FaultError
from executord.files.cache.blob_check import BlobCheck
from executord.files.cache.blobs import Blobs
from executord.files.cache.damage_control import DamageControl
from executord.files.cache.grounds import Ground
from executord.files.cache.inodes import Inodes
from executord.files.cache.integrity import Beliefs, Integrity
from executord.files.cache.objects import Objects, Revisions, Trees
from executord.files.cache.quarantine import FoundBy
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.tree_check import Damage, Way
from executord.files.faults import CancelledWorkError, disk
from executord.files.progress import Counter
from executord.files.system.threads import in_thread, in_thread_until
from executord.ports import DamagedObject, OnProgress, VerifyReport

_MOST_OBJECTS = 1000
_MOST_SKIPPED = 100
_LOOK_UP_EVERY = 64


@dataclass(slots=True)
class _Tally:
    began: float
    found_by: FoundBy
    mend: bool
    epoch: int
    snapshots: int = 0
    blobs: int = 0
    trees: int = 0
    revisions: int = 0
    bytes_read: int = 0
    mended: int = 0
    damaged: dict[tuple[str, str], DamagedObject] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def note(self, found: DamagedObject) -> None:
        """The same thing may be found through several trees: it counts once."""
        key = found.kind, found.digest
        known = self.damaged.get(key)
        if known is not None:
            trees = tuple(dict.fromkeys((*known.trees, *found.trees)))
            mended, why_not = known.mended and found.mended, known.why_not or found.why_not
            found = replace(known, trees=trees, mended=mended, why_not=why_not)
        self.damaged[key] = found

    def report(self) -> VerifyReport:
        objects = tuple(self.damaged.values())
        return VerifyReport(
            snapshots=self.snapshots,
            blobs=self.blobs,
            trees=self.trees,
            revisions=self.revisions,
            bytes_read=self.bytes_read,
            seconds=time.monotonic() - self.began,
            damaged=len(objects),
            mended=sum(found.mended for found in objects),
            objects=objects[:_MOST_OBJECTS],
            skipped=tuple(self.skipped[:_MOST_SKIPPED]),
        )


class Inspection:
    def __init__(
        self,
        *,
        blobs: Blobs,
        trees: Trees,
        revisions: Revisions,
        snapshots: Snapshots,
        blob_check: BlobCheck,
        control: DamageControl,
        beliefs: Beliefs,
        integrity: Integrity,
    ) -> None:
        self._blobs = blobs
        self._trees = trees
        self._revisions = revisions
        self._snapshots = snapshots
        self._blob_check = blob_check
        self._control = control
        self._beliefs = beliefs
        self._integrity = integrity

    async def run(
        self,
        *,
        found_by: FoundBy,
        mend: bool,
        known: Inodes,
        threads: Executor,
        tell: OnProgress,
        cancelled: threading.Event,
        rest: Callable[[int], None],
    ) -> VerifyReport:
        """`known` inodes are not read. Without `mend` nothing is moved or fetched, but whatever is
        bad is believed no longer, so that it is mended before anybody uses it.

        Raises CancelledWorkError once `cancelled` is set, and FaultError.
        """
        tally = _Tally(
            began=time.monotonic(), found_by=found_by, mend=mend, epoch=self._control.epoch
        )

        def read(size: int) -> None:
            tally.bytes_read += size
            rest(size)

        recent, files, size = await in_thread(threads, self._most_recent_first)
        counter = Counter("checking the cache", tell, files_total=files, bytes_total=size)
        way = Way(known=known, counter=counter, cancelled=cancelled, rest=read)
        for ground in recent:
            if cancelled.is_set():
                raise CancelledWorkError
            await self._one_ground(ground, way, tally, threads)
        await in_thread_until(threads, cancelled, lambda: self._all_blobs(way, tally))
        await in_thread_until(threads, cancelled, lambda: self._all_objects(way, tally))
        counter.done()
        if self._control.epoch == tally.epoch and not tally.skipped:
            self._beliefs.all_are_right(tally.epoch)
        return tally.report()

    def _most_recent_first(self) -> tuple[list[Ground], int, int]:
        with disk("look at the file cache"):
            used: dict[Ground, float] = {}
            files, size = self._blobs.count, self._blobs.bytes
            for ground, about in self._snapshots.grounds().items():
                try:
                    used[ground] = self._snapshots.last_used(ground)
                except FileNotFoundError:
                    continue
                files += about.files
                size += about.bytes
        return sorted(used, key=lambda ground: used[ground], reverse=True), files, size

    async def _one_ground(self, ground: Ground, way: Way, tally: _Tally, threads: Executor) -> None:
        try:
            damages = await in_thread_until(
                threads, way.cancelled, lambda: self._integrity.check(ground, way)
            )
        except FaultError as error:
            tally.skipped.append(f"{ground.tree}: {error.fault.detail}")
            return
        tally.snapshots += 1
        if not damages:
            return
        runs = tuple(self._control.live_on((ground,)))
        mended, why_not = False, ""
        if tally.mend:
            await in_thread(threads, self._control.bad_ground, ground, damages, tally.found_by)
            why_not = await self._integrity.build_again(ground.tree)
            mended = not why_not
            await self._integrity.build_what_is_held()
            self._control.count(mended=len(damages) if mended else 0)
        else:
            self._control.suspect(damage.inode for damage in damages if damage.inode)
        for damage in damages:
            found = _found(ground, damage, mended=mended, runs=runs)
            tally.note(replace(found, why_not=why_not))

    def _all_blobs(self, way: Way, tally: _Tally) -> None:
        with disk("check the blobs"):
            keys = (key for key, _ in self._blobs.listing())
            bad = self._blob_check.check(keys, way, tally.found_by, act=tally.mend)
            tally.blobs = self._blobs.count
        for key, what in bad:
            mended = tally.mend and not os.path.exists(self._blobs.path(key))  # noqa: PTH110 - a str
            why_not = "It came back meanwhile." if tally.mend and not mended else ""
            tally.note(
                DamagedObject(
                    kind="blob", digest=key.digest, what=what, mended=mended, why_not=why_not
                )
            )
            self._control.count(mended=int(mended))

    def _all_objects(self, way: Way, tally: _Tally) -> None:
        with disk("check trees and revisions"):
            tally.trees = self._objects(self._trees.objects, "tree", way, tally)
            tally.revisions = self._objects(self._revisions.objects, "revision", way, tally)

    def _objects(
        self, objects: Objects, kind: Literal["tree", "revision"], way: Way, tally: _Tally
    ) -> int:
        """They are checked whenever they are read, so a bad one is as good as gone already."""
        number = 0
        for digest in objects.all():
            number += 1
            if number % _LOOK_UP_EVERY == 0 and way.cancelled.is_set():
                raise CancelledWorkError
            if objects.get(digest) is not None or not objects.has(digest):
                continue
            if tally.mend:
                objects.forget(digest)
            self._control.count(damaged=1, mended=int(tally.mend))
            tally.note(
                DamagedObject(kind=kind, digest=digest, what="has other content", mended=tally.mend)
            )
        return number


def _found(ground: Ground, damage: Damage, *, mended: bool, runs: tuple[str, ...]) -> DamagedObject:
    what = f"{damage.path} {damage.what}"
    if damage.entry is None:
        return DamagedObject(
            kind=ground.kind, digest=ground.tree, what=what, mended=mended, runs=runs
        )
    return DamagedObject(
        kind="blob",
        digest=damage.entry.digest,
        what=what,
        mended=mended,
        trees=(ground.tree,),
        runs=runs,
    )

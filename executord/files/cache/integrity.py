"""No run gets wrong bytes: what was made by an earlier daemon is read again before its first use,
what is found bad is put aside, fetched and built again.

What this daemon wrote itself was hashed while it was written. Everything else is believed only
after it was read once; `Inodes` remembers which files that are, `_checked` which trees.
"""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal

import structlog

from executord.core.reasons import FaultError
from executord.files.cache.blob_check import BlobCheck
from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.damage_control import DamageControl
from executord.files.cache.grounds import About, Ground
from executord.files.cache.records_check import records_are_right
from executord.files.cache.shared_work import SharedWork
from executord.files.cache.snapshot_builds import Made, SnapshotBuilds
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.tree_check import AnyLayer, Damage, TreeCheck, Way
from executord.files.faults import corrupt, disk
from executord.files.model.trees import EMPTY_TREE
from executord.files.progress import Counter
from executord.files.store.transfer import Fetcher
from executord.files.system.directories import MovedError, NotRegularError
from executord.files.system.hashing import nothing
from executord.ports import OnProgress

log = structlog.get_logger(__name__)

Verify = Literal["first_use", "background"]

_TRIES = 3
_CHECKING = "checking files"


class Beliefs:
    """Which trees need not be looked at. Safe in any thread."""

    def __init__(self, blobs: Blobs, snapshots: Snapshots, control: DamageControl) -> None:
        self._blobs = blobs
        self._snapshots = snapshots
        self._control = control
        self._checked: dict[Ground, int] = {}
        self._all_since: int | None = None

    def open(self) -> None:
        """What an empty cache will hold is all of this process's making."""
        if not self._snapshots.grounds() and next(self._blobs.listing(), None) is None:
            self.all_are_right(self.epoch)

    @property
    def epoch(self) -> int:
        return self._control.epoch

    def all_are_right(self, epoch: int) -> None:
        """Everything that is here was looked at, or made of that, while it was that epoch."""
        self._all_since = epoch

    @property
    def is_all_right(self) -> bool:
        return self._all_since == self.epoch

    def is_right(self, ground: Ground) -> bool:
        return self.is_all_right or self._checked.get(ground) == self.epoch

    def found_right(self, ground: Ground, epoch: int) -> None:
        """While it was that epoch, with all it stands on."""
        self._checked[ground] = epoch

    def is_made_on_right(self, ground: Ground) -> bool:
        """Made by this process on top of what is right: only what is in itself is open."""
        below = self._snapshots.chain(ground)[1:2]
        return bool(below) and self._snapshots.is_made_here(ground) and self.is_right(below[0])


class Integrity:
    """`verify`: whether a run waits until its files are checked, or the scrub alone looks."""

    def __init__(
        self,
        *,
        owner: tuple[int, int],
        blobs: Blobs,
        snapshots: Snapshots,
        fetcher: Fetcher,
        builds: SnapshotBuilds,
        blob_check: BlobCheck,
        control: DamageControl,
        beliefs: Beliefs,
        threads: Executor,
        ahead_threads: Executor | None = None,
        verify: Verify = "first_use",
    ) -> None:
        self._owner = owner
        self._blobs = blobs
        self._snapshots = snapshots
        self._fetcher = fetcher
        self._builds = builds
        self._blob_check = blob_check
        self._control = control
        self._beliefs = beliefs
        self._verify = verify
        self._checks: SharedWork[bool] = SharedWork(threads, ahead_threads)

    @property
    def is_busy(self) -> bool:
        """Somebody waits for a check: whoever has time should not be in the way."""
        return self._checks.under_way > 0

    async def close(self) -> None:
        await self._checks.close()

    def before_placing(self, keys: Iterable[BlobKey], cancelled: threading.Event) -> None:
        """Bad blobs among these are gone afterwards, to be fetched again. Blocks.

        Raises FaultError, CancelledWorkError.
        """
        if self._beliefs.is_all_right or (self._verify == "background" and not self._beliefs.epoch):
            return
        way = Way(
            known=self._blobs.found_right,
            counter=Counter(_CHECKING, None),
            cancelled=cancelled,
            rest=nothing,
        )
        with disk("check the files that are here"):
            bad = self._blob_check.check(keys, way, "first use")
        self._control.count(mended=len(bad))

    async def before_use(self, tree: str, tell: OnProgress, *, ahead: bool = False) -> Made | None:
        """The tree is right on return; what was built again for that, or None.

        Costs nothing once it is known. `tell` is called in a thread. `ahead` of its use it gives
        way to everything else. Raises FILES_CORRUPT where the store has no good copy either, and
        the store's and disk's faults.
        """
        if self._is_believed(tree):
            return None
        made: Made | None = None

        def make_sure(tell: OnProgress, cancelled: threading.Event) -> bool:
            return self._make_sure(tree, tell, cancelled)

        for _ in range(_TRIES):
            if await self._checks.join(tree, make_sure, tell, ahead=ahead):
                if made is not None:
                    self._control.count(mended=1)
                return made
            made, _ = await self._builds.build(tree, tell, ahead=ahead)
            await self.build_what_is_held()
        raise corrupt(
            f"The files of {tree} are damaged again as soon as they were fetched. "
            "Check the node's disk and memory; the quarantine folder holds what was found."
        )

    def _is_believed(self, tree: str) -> bool:
        if tree == EMPTY_TREE or (self._verify == "background" and self._beliefs.epoch == 0):
            return True
        ground = self._snapshots.ground_of(tree)
        return ground is not None and self._beliefs.is_right(ground)

    def _make_sure(self, tree: str, tell: OnProgress, cancelled: threading.Event) -> bool:
        ground = self._snapshots.ground_of(tree)
        if ground is None:
            return False
        if self._beliefs.is_right(ground):
            return True
        way = Way(
            known=self._blobs.found_right,
            counter=Counter(_CHECKING, tell),
            cancelled=cancelled,
            rest=nothing,
        )
        damages = self.check(ground, way, partly=self._beliefs.is_made_on_right(ground))
        if damages:
            self._control.bad_ground(ground, damages, "first use")
        return self._beliefs.is_right(ground)

    def check(self, ground: Ground, way: Way, *, partly: bool = False) -> list[Damage]:
        """What is wrong with the tree it shows; believed from now on where nothing is. Blocks.

        One that is not here (any more) has nothing wrong, and is not believed. `partly` believes
        what it stands on. Raises FaultError, CancelledWorkError.
        """
        with disk(f"check the files of {ground.tree}"):
            epoch = self._beliefs.epoch
            about = self._snapshots.find(ground.tree, ground.kind)
            if about is None:
                return []
            lowers = [self._snapshots.root(each) for each in self._snapshots.chain(ground)]
            before = [_identity(lower) for lower in lowers]
            way.counter.expect(about.files, about.bytes)
            damages = self._damages(ground, about, lowers, way, partly=partly)
            way.counter.done()
            if None in before or [_identity(lower) for lower in lowers] != before:
                return []  # evicted meanwhile
            if not damages:
                self._beliefs.found_right(ground, epoch)
            return damages

    def _damages(
        self, ground: Ground, about: About, lowers: Sequence[Path], way: Way, *, partly: bool
    ) -> list[Damage]:
        def found_right(inode: int) -> None:
            way.known.add(inode)
            self._blobs.found_right.add(inode)

        check = TreeCheck(
            lowers=lowers,
            root=ground.tree,
            tree_of=self._fetcher.tree,
            owner=self._owner,
            blobs=self._blobs,
            way=way,
            found_right=found_right,
            top_only=partly,
        )
        try:
            damages = check.run()
        except (FileNotFoundError, NotADirectoryError, MovedError, NotRegularError):
            return [Damage(path=".", what="changed while it was checked", layer=AnyLayer)]
        if damages or partly or records_are_right(self._snapshots, ground, about, check):
            return damages
        return [Damage(path=".", what="has records that are not its own", layer=0)]

    async def build_what_is_held(self) -> None:
        """Trees that went out of service while somebody else holds them: their paths have to be
        there again before a container is mounted on them.
        """
        for tree in self._control.to_build_again():
            if self._snapshots.find(tree) is None:
                await self.build_again(tree)

    async def build_again(self, tree: str) -> str:
        """Why it is not there: the store has no good copy, or cannot be asked. Once it is: ""."""
        try:
            await self._builds.build(tree, nobody)
        except FaultError as error:
            log.warning("tree.not_mended", tree=tree, detail=error.fault.detail)
            return error.fault.detail
        return ""


def nobody(_: object) -> None:
    """Is told how far it is."""


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return None
    return facts.st_dev, facts.st_ino

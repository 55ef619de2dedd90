"""What is done about damage: the blob goes into quarantine, every tree that links to it out of
service, and whatever was believed to be right on its account is looked at again.
"""

import contextlib
import os
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import structlog

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.grounds import About, Ground
from executord.files.cache.layout import Layout
from executord.files.cache.quarantine import FoundBy, Note, Quarantine
from executord.files.cache.records import GROUPED, RecordsLookup
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.tree_check import Damage
from executord.files.faults import disk
from executord.files.model.closure import key_of
from executord.files.system import disk as disks

log = structlog.get_logger(__name__)

_MOST_NAMED = 20


class _Lease(msgspec.Struct):
    """The part of a run's lease that counts here."""

    kept: bool = False


class DamageControl:
    """Blocks; any thread may call it.

    `epoch` changes whenever damage is found: what was concluded under another one is void.
    """

    def __init__(self, *, layout: Layout, blobs: Blobs, snapshots: Snapshots) -> None:
        self._layout = layout
        self._blobs = blobs
        self._snapshots = snapshots
        self.quarantine = Quarantine(layout)
        self._lock = threading.Lock()
        self.epoch = 0
        self.damaged = 0
        self.mended = 0
        self._homeless: set[str] = set()
        snapshots.keep_aside = self._keep_aside

    def is_live(self, holder: str) -> bool:
        """A run with a workspace may be mounted on what it holds; others only look at it, and one
        that is over only has its changes kept.
        """
        if "/" in holder:
            return False
        try:
            data = (self._layout.runs / holder / "lease.json").read_bytes()
            return not msgspec.json.decode(data, type=_Lease).kept
        except FileNotFoundError:
            return False
        except (OSError, msgspec.MsgspecError, UnicodeError):
            return True

    def _keep_aside(self, home: Path, ground: Ground) -> bool:
        """Of a ground of which nobody can tell any more what it is, and so who is mounted on it."""
        runs = [path.name for path in self._layout.runs.iterdir() if self.is_live(path.name)]
        if not runs:
            return self._layout.throw_away(home)
        note = Note(
            kind=ground.kind,
            digest=ground.tree,
            what="has a description that cannot be read",
            found_by="first use",
            found_at=time.time(),
            runs=tuple(runs),
        )
        return self.quarantine.take(home, note)

    def suspect(self, inodes: Iterable[int]) -> None:
        """They are read again before anybody uses them; and so is all that leads to them."""
        for inode in inodes:
            self._blobs.found_right.discard(inode)
        with self._lock:
            self.epoch += 1

    def count(self, *, damaged: int = 0, mended: int = 0) -> None:
        with self._lock:
            self.damaged += damaged
            self.mended += mended

    def to_build_again(self) -> list[str]:
        """Trees that somebody holds, and that were taken away: told once."""
        with self._lock:
            trees, self._homeless = list(self._homeless), set()
        return trees

    def bad_blob(self, key: BlobKey, *, hashes_to: str, what: str, found_by: FoundBy) -> None:
        """Raises FaultError where the disk refuses."""
        with disk(f"quarantine {key.digest}"):
            self._bad_blob(key, hashes_to=hashes_to, what=what, found_by=found_by)

    def _bad_blob(self, key: BlobKey, *, hashes_to: str, what: str, found_by: FoundBy) -> None:
        path = Path(self._blobs.path(key))
        try:
            facts = path.lstat()
        except FileNotFoundError:
            return
        self.suspect((facts.st_ino,))
        self.count(damaged=1)
        grounds = self._grounds_with(key)
        trees = list(dict.fromkeys(ground.tree for ground in grounds))
        runs = self.live_on(grounds)
        note = Note(
            kind="blob",
            digest=key.digest,
            what=what,
            found_by=found_by,
            found_at=time.time(),
            executable=key.executable,
            size_bytes=facts.st_size,
            hashes_to=hashes_to,
            trees=tuple(trees[:_MOST_NAMED]),
            runs=tuple(runs),
        )
        if self.quarantine.take(path, note):
            self._blobs.added(-1, -disks.allocated(facts.st_size))
        log.error(
            "blob.quarantined",
            digest=key.digest,
            hashes_to=hashes_to,
            what=what,
            found_by=found_by,
            trees=trees[:_MOST_NAMED],
            trees_total=len(trees),
            runs=runs,
        )
        for ground in grounds:
            self._take_out(ground, "links to a damaged blob", found_by)

    def bad_ground(self, ground: Ground, damages: Sequence[Damage], found_by: FoundBy) -> None:
        """Quarantine the blobs that are behind it, and take what is damaged out of service."""
        with disk(f"take the damaged tree {ground.tree} out of service"):
            self._bad_ground(ground, damages, found_by)

    def _bad_ground(self, ground: Ground, damages: Sequence[Damage], found_by: FoundBy) -> None:
        chain = self._snapshots.chain(ground)
        bad: dict[Ground, str] = {}
        for damage in damages:
            blamed = chain if damage.layer < 0 else chain[damage.layer : damage.layer + 1]
            for each in blamed:
                bad.setdefault(each, f"{damage.path} {damage.what}")
            if damage.entry is not None and self._is_blob(key_of(damage.entry), damage.inode):
                self._bad_blob(
                    key_of(damage.entry),
                    hashes_to=damage.hashes_to,
                    what=damage.what,
                    found_by=found_by,
                )
            else:
                self.count(damaged=1)
        self.suspect(damage.inode for damage in damages if damage.inode)
        for each, what in bad.items():
            self._take_out(each, what, found_by)

    def _is_blob(self, key: BlobKey, inode: int) -> bool:
        try:
            return os.lstat(self._blobs.path(key)).st_ino == inode
        except FileNotFoundError:
            return False

    def _take_out(self, ground: Ground, what: str, found_by: FoundBy) -> None:
        """With all that stands on it. What live runs are mounted on has to stay somewhere until
        they have ended.
        """
        for other in self._snapshots.standing_on(ground):
            self._take_out(other, what, found_by)
        holders = self._snapshots.holders().get(ground, ())
        runs = [holder for holder in holders if self.is_live(holder)]
        note = Note(
            kind=ground.kind,
            digest=ground.tree,
            what=what,
            found_by=found_by,
            found_at=time.time(),
            runs=tuple(runs),
        )

        def move(home: Path) -> bool:
            return self.quarantine.take(home, note) if runs else self._layout.throw_away(home)

        if not self._snapshots.take_out(ground, move):
            return
        if holders:
            with self._lock:
                self._homeless.update(self._held_trees(holders))
        log.error(
            "tree.out_of_service",
            kind=ground.kind,
            tree=ground.tree,
            what=what,
            found_by=found_by,
            runs=runs,
        )

    def _held_trees(self, holders: Iterable[str]) -> list[str]:
        """Their own trees: what those stood on is built again with them, or not needed."""
        wanted = set(holders)
        return [tree for tree, held in self._snapshots.held_trees().items() if wanted & set(held)]

    def _grounds_with(self, key: BlobKey) -> list[Ground]:
        found = []
        for ground, about in self._snapshots.grounds().items():
            try:
                if self._links_to(ground, about, key):
                    found.append(ground)
            except (OSError, ValueError, struct.error):
                continue
        return found

    def _links_to(self, ground: Ground, about: About, key: BlobKey) -> bool:
        if about.records != GROUPED:
            return any(linked == key for linked, _ in self._snapshots.blobs_of(ground))
        with contextlib.closing(RecordsLookup(self._snapshots.records_path(ground))) as records:
            return key in records

    def live_on(self, grounds: Iterable[Ground]) -> list[str]:
        """Runs that may be mounted on one of them."""
        held = self._snapshots.holders()
        holders = {holder for ground in grounds for holder in held.get(ground, ())}
        return sorted(holder for holder in holders if self.is_live(holder))

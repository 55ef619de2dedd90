"""Keeping the cache within its limits, and deleting what was thrown away.

What goes is chosen by `core.eviction`. It is renamed into the trash first, which is all that a
lock or a run could ever notice; the deletion itself follows slowly.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from executord.core import eviction
from executord.core.eviction import Evictable
from executord.core.reasons import Reason
from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.layout import Layout
from executord.files.cache.objects import Revisions, Trees
from executord.files.cache.snapshots import About, Snapshots
from executord.files.faults import fault
from executord.files.system import disk
from executord.files.system.directories import remove_tree
from executord.ports import CacheEntry

log = structlog.get_logger(__name__)

_PAUSE_EVERY = 16
_PAUSE_SECONDS = 0.002
_OBJECT_GRACE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Watermarks are shares of `max_size_bytes`. `min_free_bytes` stay free on the disk."""

    max_size_bytes: int
    low_watermark: float
    high_watermark: float
    min_free_bytes: int


@dataclass(slots=True)
class _Inventory:
    """All that could go. `parts` are the blobs that snapshots link to."""

    entries: list[Evictable]
    parts: list[BlobKey]
    part_bytes: list[int]
    shown: dict[str, CacheEntry]
    pinned: dict[str, tuple[str, ...]]
    loose: dict[str, BlobKey]


@dataclass(frozen=True, slots=True)
class Plan:
    victims: tuple[CacheEntry, ...]
    freed_bytes: int
    inventory: _Inventory
    freed_parts: frozenset[int]


class Sweeper:
    """Blocks. One sweep at a time."""

    def __init__(
        self,
        *,
        layout: Layout,
        limits: Limits,
        blobs: Blobs,
        snapshots: Snapshots,
        trees: Trees,
        revisions: Revisions,
    ) -> None:
        self._layout = layout
        self.limits = limits
        self._blobs = blobs
        self._snapshots = snapshots
        self._trees = trees
        self._revisions = revisions
        self._lock = threading.Lock()
        self._trash_lock = threading.Lock()
        self.evicted_bytes = 0

    def used_bytes(self) -> int:
        """Blobs, and what snapshots hold besides links to them."""
        return self._blobs.bytes + sum(about.own_bytes for about in self._snapshots.all().values())

    def wanted_bytes(self) -> int:
        """How much has to go now: 0 below the high watermark and with enough disk free."""
        limits = self.limits
        used = self.used_bytes()
        over = used - int(limits.high_watermark * limits.max_size_bytes)
        too_much = used - int(limits.low_watermark * limits.max_size_bytes) if over > 0 else 0
        too_little_free = limits.min_free_bytes - disk.free_bytes(self._layout.root)
        return max(0, too_much, too_little_free)

    def make_room(self, incoming_bytes: int) -> None:
        """Before that much is fetched: evict what is needed for it. Raises DISK_FULL."""
        limits = self.limits
        over = self.used_bytes() + incoming_bytes - limits.max_size_bytes
        short = limits.min_free_bytes + incoming_bytes - disk.free_bytes(self._layout.root)
        if max(over, short) <= 0:
            return
        self.sweep(max(over, short))
        self.empty_trash()
        free = disk.free_bytes(self._layout.root)
        if free < limits.min_free_bytes + incoming_bytes:
            raise fault(
                Reason.DISK_FULL,
                f"The run's files need {incoming_bytes} bytes; {free} are free under "
                f"{self._layout.root}, of which {limits.min_free_bytes} have to stay free, and "
                "nothing more can be evicted.",
                needed_bytes=incoming_bytes,
                free_bytes=free,
                min_free_bytes=limits.min_free_bytes,
            )

    def sweep(self, need_bytes: int) -> Plan:
        with self._lock:
            plan = self.plan(need_bytes)
            if plan.victims:
                self._carry_out(plan)
            return plan

    def plan(self, need_bytes: int) -> Plan:
        inventory = self._take_inventory()
        choice = eviction.choose_victims(
            inventory.entries,
            part_bytes=inventory.part_bytes,
            pinned=inventory.pinned.keys(),
            need_bytes=need_bytes,
        )
        victims = tuple(inventory.shown[victim.key] for victim in choice.victims)
        return Plan(victims, choice.freed_bytes, inventory, choice.freed_parts)

    def entries(self) -> list[CacheEntry]:
        return list(self._take_inventory().shown.values())

    def _carry_out(self, plan: Plan) -> None:
        inventory = plan.inventory
        spared: set[int] = set()
        gone: list[BlobKey] = []
        indices = {entry.key: entry.parts for entry in inventory.entries}
        for victim in plan.victims:
            loose = inventory.loose.get(victim.digest) if victim.kind == "blob" else None
            if loose is not None:
                gone.append(loose)
            elif not self._snapshots.throw_away(victim.digest):
                spared.update(indices[victim.digest])
        gone.extend(inventory.parts[part] for part in plan.freed_parts - spared)
        self._blobs.remove(gone)
        self._forget_objects()
        self.evicted_bytes += plan.freed_bytes
        log.info(
            "cache.evicted",
            snapshots=sum(victim.kind == "snapshot" for victim in plan.victims),
            blobs=len(gone),
            freed_bytes=plan.freed_bytes,
        )

    def _forget_objects(self) -> None:
        """Trees and revisions of which no snapshot is left; the store has them still."""
        before = time.time() - _OBJECT_GRACE_SECONDS
        snapshots = self._snapshots.all()
        trees = {tree for root in snapshots for tree in self._snapshots.trees_of(root)}
        self._trees.objects.keep_only(trees, older_than=before)
        self._revisions.forget_others(snapshots.keys(), older_than=before)

    def _take_inventory(self) -> _Inventory:
        pinned = self._snapshots.pinned()
        index: dict[BlobKey, int] = {}
        part_bytes: list[int] = []
        entries: list[Evictable] = []
        abouts: dict[str, About] = {}
        for tree, about in self._snapshots.all().items():
            try:
                parts = self._parts(tree, index, part_bytes)
                used = self._snapshots.last_used(tree)
            except FileNotFoundError:
                continue  # thrown away meanwhile
            abouts[tree] = about
            entries.append(
                Evictable(key=tree, last_used=used, own_bytes=about.own_bytes, parts=parts)
            )
        loose = self._loose(index)
        entries.extend(loose.values())
        own = eviction.own_bytes(entries, part_bytes)
        shown = {
            entry.key: self._shown(entry, own[entry.key], abouts.get(entry.key), pinned)
            for entry in entries
        }
        return _Inventory(
            entries=entries,
            parts=list(index),
            part_bytes=part_bytes,
            shown=shown,
            pinned=pinned,
            loose={entry.key: key for key, entry in loose.items()},
        )

    def _parts(self, tree: str, index: dict[BlobKey, int], part_bytes: list[int]) -> Sequence[int]:
        parts = []
        for key, size in self._snapshots.blobs_of(tree):
            part = index.get(key)
            if part is None:
                part = index[key] = len(part_bytes)
                part_bytes.append(disk.allocated(size))
            parts.append(part)
        return parts

    def _loose(self, index: dict[BlobKey, int]) -> dict[BlobKey, Evictable]:
        """Blobs that no snapshot links to."""
        return {
            key: Evictable(
                key=f"{key.digest}{'-x' if key.executable else ''}",
                last_used=facts.st_mtime,
                own_bytes=disk.allocated(facts.st_size),
            )
            for key, facts in self._blobs.listing()
            if key not in index
        }

    def _shown(
        self,
        entry: Evictable,
        own: int,
        about: About | None,
        pinned: dict[str, tuple[str, ...]],
    ) -> CacheEntry:
        return CacheEntry(
            digest=entry.key,
            kind="blob" if about is None else "snapshot",
            size_bytes=entry.own_bytes if about is None else about.bytes,
            own_bytes=own,
            files=1 if about is None else about.files,
            last_used=entry.last_used,
            pinned_by=pinned.get(entry.key, ()),
        )

    # -- the trash ---------------------------------------------------------------------------------

    def empty_trash(self, stop: threading.Event | None = None) -> None:
        """Delete it all; with `stop` slowly, in the background, until that is set."""
        with self._trash_lock:
            for path in list(self._layout.trash.iterdir()):
                if stop is not None and stop.is_set():
                    return
                try:
                    if path.is_dir() and not path.is_symlink():
                        remove_tree(path, _Pause() if stop is not None else None)
                    else:
                        path.unlink()
                except OSError as error:
                    log.warning("trash.stuck", path=str(path), error=str(error))


class _Pause:
    """Rests after every few directories."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self) -> None:
        self._calls += 1
        if self._calls % _PAUSE_EVERY == 0:
            time.sleep(_PAUSE_SECONDS)

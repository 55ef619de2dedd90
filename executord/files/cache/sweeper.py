"""Keeping the cache within its limits: when something has to go, what goes, and how.

What goes is chosen by `core.eviction`. It is renamed into the trash first, which is all that a
lock or a run could ever notice; the deletion itself follows slowly (`cache.trash`).
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from executord.core import eviction
from executord.core.eviction import NOTHING, Choice, Space
from executord.core.reasons import Reason
from executord.files.cache.accounting import Accounting
from executord.files.cache.beside import give_up
from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.grounds import Ground
from executord.files.cache.inventory import (
    RECORD,
    Held,
    Inventory,
    key_of_ground,
    read_region,
    take_inventory,
)
from executord.files.cache.layout import Layout
from executord.files.cache.objects import Revisions, Trees
from executord.files.cache.promises import Promise, Promises
from executord.files.cache.remembered import MOST_RECENT, Evicted, RecentEviction, Remembered
from executord.files.cache.showing import show_entries, why_it_goes
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.trash import Trash
from executord.files.cache.uses import Uses
from executord.files.faults import fault
from executord.files.model import digests
from executord.files.system import disk
from executord.ports import CacheEntry, EvictionTrigger

log = structlog.get_logger(__name__)

EVERYTHING = Space(1 << 62, 1 << 62)

_OBJECT_GRACE_SECONDS = 3600.0
_LEAST_FOR_A_FULL_DISK = Space(64 << 20, 1024)
_LINKS_AT_ONCE = 1 << 19
_NAME_BYTES = 33


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Watermarks are shares of the most. `min_free` stay free on the disk; 0 inodes: no limit."""

    max_size_bytes: int
    low_watermark: float
    high_watermark: float
    min_free_bytes: int
    max_inodes: int = 0
    min_free_inodes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes in which order, each with why."""

    victims: tuple[CacheEntry, ...]
    choice: Choice
    inventory: Inventory

    @property
    def freed(self) -> Space:
        return self.choice.freed

    @property
    def freed_bytes(self) -> int:
        return self.choice.freed.bytes


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
        accounting: Accounting,
        uses: Uses,
        trash: Trash,
        remembered: Remembered,
    ) -> None:
        self._layout = layout
        self.limits = limits
        self._blobs = blobs
        self._snapshots = snapshots
        self._trees = trees
        self._revisions = revisions
        self.remembered = remembered
        self._lock = threading.Lock()
        self._making_room = threading.Lock()
        self.promises = Promises()
        self.accounting = accounting
        self.uses = uses
        self.trash = trash
        self.evicted_bytes = 0

    def free(self) -> disk.FreeSpace:
        return disk.free_space(self._layout.root)

    # -- when --------------------------------------------------------------------------------------

    def used_bytes(self) -> int:
        return self.accounting.used().bytes

    def wanted(self) -> tuple[Space, EvictionTrigger] | None:
        """How much has to go now, and why; None below the high watermarks, with enough free."""
        limits, used = self.limits, self.accounting.used()
        coming, free = self.trash.coming, self.free()
        found: list[tuple[Space, EvictionTrigger]] = []
        over = _over(used.bytes, limits.max_size_bytes, limits)
        if over:
            found.append((Space(over), "high_watermark"))
        if limits.max_inodes and (over := _over(used.inodes, limits.max_inodes, limits)):
            found.append((Space(0, over), "inode_watermark"))
        short = limits.min_free_bytes - free.bytes - coming.bytes
        if short > 0:
            found.append((Space(short), "free_space"))
        if free.inodes is not None:
            short = limits.min_free_inodes - free.inodes - coming.inodes
            if short > 0:
                found.append((Space(0, short), "free_inodes"))
        if not found:
            return None
        need = Space(max(each.bytes for each, _ in found), max(each.inodes for each, _ in found))
        return need, found[0][1]

    def empty_trash_if_short(self, leaving: threading.Event) -> None:
        """Before anything is evicted for the disk's sake: nobody has told how much is in there,
        after a restart above all. Raises OSError.
        """

        def is_enough() -> bool:
            short, coming = self._short_of(NOTHING, own_limits=False), self.trash.coming
            return short.bytes <= coming.bytes and short.inodes <= coming.inodes

        if not is_enough():
            self.trash.empty_now(lambda: leaving.is_set() or is_enough())

    def make_room(
        self, incoming_bytes: int, incoming_inodes: int = 0, promise: Promise | None = None
    ) -> None:
        """Before that much is fetched: evict what is needed for it and for all that was promised
        to others; `promise` remembers it for this work. Raises DISK_FULL.
        """
        incoming = Space(incoming_bytes, incoming_inodes)
        expected = self.promises.expect(incoming, promise)
        if self._short_of(expected, own_limits=True) == NOTHING:
            return

        def fits() -> bool:
            return self._short_of(expected, own_limits=False) == NOTHING

        with self._making_room:
            if not fits():
                self.trash.empty_now(fits)
            need = self._short_of(expected, own_limits=True)
            still_short = self._short_of(expected, own_limits=False)
            coming = self.trash.coming
            self.sweep(
                Space(
                    max(need.bytes - coming.bytes, 0) if still_short.bytes else need.bytes,
                    max(need.inodes - coming.inodes, 0) if still_short.inodes else need.inodes,
                ),
                "room_for_a_run",
            )
        self.trash.empty_now(fits)
        # Others may need less than they were promised: only what is certain is refused.
        self.give_up_beside(lambda: self._short_of(incoming, own_limits=False) == NOTHING)
        if self._short_of(incoming, own_limits=False) != NOTHING:
            raise self._refusal(incoming)

    def make_room_again(self, promise: Promise) -> None:
        """The disk was full in spite of the promise: others wrote, or it tells too much of itself.
        Raises OSError.
        """
        expected = self.promises.begin_again(promise)

        def short() -> Space:
            return self._short_of(expected, own_limits=False)

        with self._making_room:
            self.trash.empty_now(lambda: False)
            need = short()
            if need == NOTHING:
                asked, least = promise.asked, _LEAST_FOR_A_FULL_DISK
                need = Space(max(asked.bytes, least.bytes), max(asked.inodes, least.inodes))
            self.sweep(need, "room_for_a_run")
        self.trash.empty_now(lambda: False)
        self.give_up_beside(lambda: short() == NOTHING)

    def give_up_beside(self, is_enough: Callable[[], bool]) -> None:
        """Half-fetched files, then indexes of packs, the oldest first. Raises OSError."""
        if not is_enough():
            give_up(self._layout, self._blobs, is_enough)

    def _short_of(self, incoming: Space, *, own_limits: bool) -> Space:
        """What is missing on the disk for that much more; with `own_limits` in the cache too."""
        limits, free = self.limits, self.free()
        size = limits.min_free_bytes + incoming.bytes - free.bytes
        inodes = 0
        if free.inodes is not None:
            inodes = limits.min_free_inodes + incoming.inodes - free.inodes
        if own_limits:
            used = self.accounting.used()
            size = max(size, used.bytes + incoming.bytes - limits.max_size_bytes)
            if limits.max_inodes:
                inodes = max(inodes, used.inodes + incoming.inodes - limits.max_inodes)
        return Space(max(0, size), max(0, inodes))

    def _refusal(self, incoming: Space) -> Exception:
        limits, free = self.limits, self.free()
        detail = (
            f"The run's files need {incoming.bytes} bytes; {free.bytes} are free under "
            f"{self._layout.root}, of which {limits.min_free_bytes} have to stay free, and "
            "nothing more can be evicted."
        )
        if free.inodes is not None and free.inodes < limits.min_free_inodes + incoming.inodes:
            detail = (
                f"The run's files need {incoming.inodes} inodes; {free.inodes} are free under "
                f"{self._layout.root}, of which {limits.min_free_inodes} have to stay free, and "
                "nothing more can be evicted."
            )
        return fault(
            Reason.DISK_FULL,
            detail,
            needed_bytes=incoming.bytes,
            free_bytes=free.bytes,
            min_free_bytes=limits.min_free_bytes,
            needed_inodes=incoming.inodes,
            free_inodes=free.inodes,
            min_free_inodes=limits.min_free_inodes,
        )

    # -- what --------------------------------------------------------------------------------------

    def plan(self, need: Space) -> Plan:
        """Raises OSError."""
        inventory = self._take_inventory()
        now = time.time()
        choice = eviction.choose_victims(
            inventory.entries.values(),
            parts=inventory.parts,
            pinned={key_of_ground(ground) for ground in self._snapshots.holders()},
            need=need,
            now=now,
        )
        shown = show_entries(inventory, self._snapshots)
        victims = []
        for victim in choice.victims:
            entry = inventory.entries[victim.key]
            why = why_it_goes(entry, victim.seconds, now)
            victims.append(replace(shown[victim.key], own_bytes=victim.freed.bytes, why=why))
        return Plan(tuple(victims), choice, inventory)

    def entries(self) -> list[CacheEntry]:
        """Raises OSError."""
        return list(show_entries(self._take_inventory(), self._snapshots).values())

    def _take_inventory(self) -> Inventory:
        held = []
        for ground, about in self._snapshots.grounds().items():
            try:
                last_used = self._snapshots.last_used(ground)
            except FileNotFoundError:
                continue  # thrown away meanwhile
            own, use = self.accounting.own(ground, about), self.uses.of(ground.tree)
            held.append(
                Held(
                    ground=ground,
                    about=about,
                    records=self._snapshots.records_path(ground),
                    last_used=last_used,
                    own_bytes=own.bytes,
                    own_inodes=own.inodes,
                    uses=eviction.discounted(use.uses, last_used - use.last_used),
                )
            )
        per_file, per_byte = self.remembered.fetch_cost.per_file_and_byte
        return take_inventory(
            held, self._blobs, seconds_per_file=per_file, seconds_per_byte=per_byte
        )

    # -- how ---------------------------------------------------------------------------------------

    def sweep(self, need: Space, trigger: EvictionTrigger) -> Plan:
        """Raises OSError. What is freed is on its way when it returns, and counted as such."""
        with self._lock:
            if need == NOTHING:
                return Plan((), Choice((), frozenset()), Inventory())
            plan = self.plan(need)
            if plan.victims:
                self._carry_out(plan, trigger)
            return plan

    def _carry_out(self, plan: Plan, trigger: EvictionTrigger) -> None:
        inventory = plan.inventory
        refused = 0
        for batch in _batches(plan, inventory):
            candidates: set[bytes] = set()
            for held in batch:
                candidates.update(_names(held))
                if not self._snapshots.throw_away(held.ground):
                    refused += 1
            self._blobs.remove(self._nobodys(candidates))
        for victim in plan.choice.victims:
            loose = inventory.loose.get(victim.key)
            if loose is not None:
                self._blobs.remove(_key_of(name) for name in loose.names.split("\n"))
        self.trash.expect(plan.freed)
        self._forget_objects()
        self._note(plan, trigger)
        log.info(
            "cache.evicted",
            trigger=trigger,
            grounds=sum(victim.kind != "blob" for victim in plan.victims),
            entries=len(plan.victims),
            refused=refused,
            freed_bytes=plan.freed.bytes,
            freed_inodes=plan.freed.inodes,
        )

    def _nobodys(self, candidates: set[bytes]) -> Iterator[BlobKey]:
        """Those that no ground links to that is here now. Raises OSError."""
        for ground in self._snapshots.grounds():
            if not candidates:
                return
            try:
                data = self._snapshots.records_path(ground).read_bytes()
            except FileNotFoundError:
                continue  # thrown away meanwhile
            candidates.difference_update(_names_in(data))
        for name in candidates:
            yield BlobKey(digests.PREFIX + name[:32].hex(), bool(name[32]))

    def _note(self, plan: Plan, trigger: EvictionTrigger) -> None:
        self.evicted_bytes += plan.freed.bytes
        evicted = self.remembered.evicted.setdefault(trigger, Evicted())
        evicted.entries += len(plan.victims)
        evicted.bytes += plan.freed.bytes
        evicted.inodes += plan.freed.inodes
        now = time.time()
        self.remembered.recent += [
            RecentEviction(
                time=now,
                kind=victim.kind,
                digest=victim.digest,
                trigger=trigger,
                why=victim.why,
                freed_bytes=victim.own_bytes,
            )
            for victim in plan.victims[-MOST_RECENT:]
        ]
        del self.remembered.recent[:-MOST_RECENT]

    def _forget_objects(self) -> None:
        """Trees and revisions of which no ground is left; the store has them still."""
        before = time.time() - _OBJECT_GRACE_SECONDS
        grounds = self._snapshots.grounds()
        roots = {ground.tree for ground in grounds}
        trees = {tree for ground in grounds for tree in self._trees_of(ground)}
        self._trees.objects.keep_only(trees, older_than=before)
        self._revisions.forget_others(roots, older_than=before)
        self.uses.forget_old(roots)

    def _trees_of(self, ground: Ground) -> Sequence[str]:
        try:
            return self._snapshots.trees_of(ground)
        except FileNotFoundError:
            return ()

    def empty_trash(self, stop: threading.Event) -> None:
        """Slowly, until it is empty or `stop` is set."""
        self.trash.empty(stop)


def _over(used: int, most: int, limits: Limits) -> int:
    """From above the high watermark down to the low one; else 0."""
    if used <= int(limits.high_watermark * most):
        return 0
    return used - int(limits.low_watermark * most)


def _batches(plan: Plan, inventory: Inventory) -> Iterator[list[Held]]:
    """Grounds that go, so many at a time that the names of their blobs fit into memory."""
    batch: list[Held] = []
    links = 0
    for victim in plan.choice.victims:
        held = inventory.grounds.get(victim.key)
        if held is None:
            continue
        batch.append(held)
        links += held.about.files
        if links >= _LINKS_AT_ONCE:
            yield batch
            batch, links = [], 0
    if batch:
        yield batch


def _names(held: Held) -> Iterable[bytes]:
    try:
        return _names_in(read_region(held.records, 0, 256, grouped=True))
    except FileNotFoundError:
        return ()


def _names_in(data: bytes) -> Iterator[bytes]:
    return (data[at : at + _NAME_BYTES] for at in range(0, len(data), RECORD.size))


def _key_of(name: str) -> BlobKey:
    return BlobKey(digests.PREFIX + name.removesuffix("-x"), name.endswith("-x"))

"""What the cache takes on its disk, kept up with every change, and checked by counting it all.

Blobs are counted as they come and go. A ground's own space is measured once on the disk itself,
some time after it was made; until then its own estimate stands in. Runs' directories are measured
again and again while they live. The full count runs in the background, now and then, and puts
right what differs.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from executord.core.eviction import NOTHING, Space
from executord.files.cache import remembered as memory
from executord.files.cache.blobs import Blobs
from executord.files.cache.grounds import About, Ground
from executord.files.cache.inventory import key_of_ground
from executord.files.cache.layout import Layout
from executord.files.cache.measure import SECTOR_BYTES, measure
from executord.files.cache.quarantine import NOTE
from executord.files.cache.remembered import Measured, Remembered
from executord.files.cache.snapshots import Snapshots
from executord.ports import CacheKind, KindUse

log = structlog.get_logger(__name__)

FIRST_COUNT_SECONDS = 600.0
FIRST_COUNT_AFTER_A_CRASH_SECONDS = 30.0
COUNT_EVERY_SECONDS = 86_400.0

_TRIES = 3
_REST_SECONDS = 0.002
_WORKSPACE_INODES = 200_000
_PATIENCE = 20.0  # measuring a live directory takes at most one in so many seconds


@dataclass(slots=True)
class _Workspace:
    space: Space
    kept: bool
    measured_at: float
    took: float
    whole: bool


class Accounting:
    """Blocks. `used` and `look_at_quarantine` are for any thread; all else is for the
    caretaker's.
    """

    def __init__(
        self, layout: Layout, blobs: Blobs, snapshots: Snapshots, remembered: Remembered
    ) -> None:
        self._layout = layout
        self._blobs = blobs
        self._snapshots = snapshots
        self._remembered = remembered
        self._workspaces: dict[str, _Workspace] = {}
        self._quarantine = KindUse(entries=0, bytes=0, inodes=0)
        self._quarantine_changed = 0
        self._beside: dict[CacheKind, KindUse] = {}
        self._lock = threading.Lock()
        self._next_count = 0.0

    def open(self) -> None:
        """Without counting everything, where an earlier daemon has. Raises OSError."""
        state = self._remembered
        memory.load_into(state, self._layout.root)
        self._blobs.load(state.blobs or (0, 0))
        soon = FIRST_COUNT_SECONDS if state.clean else FIRST_COUNT_AFTER_A_CRASH_SECONDS
        if state.blobs is None:
            soon = 0.0
        self._next_count = time.monotonic() + soon
        state.clean = False

    def close(self) -> None:
        """Raises OSError."""
        self._remembered.clean = True
        self.save()

    def save(self) -> None:
        """Raises OSError."""
        self._remembered.blobs = self._blobs.counted()
        memory.save(self._layout.root, self._remembered)

    # -- what is used ------------------------------------------------------------------------------

    def used(self) -> Space:
        """All that the limits count: blobs, grounds, runs' directories, what is quarantined,
        half-fetched files and indexes of packs.
        """
        total = Space(self._blobs.bytes, self._blobs.count)
        for ground, about in self._snapshots.grounds().items():
            total = total.plus(self.own(ground, about))
        with self._lock:
            for workspace in self._workspaces.values():
                total = total.plus(workspace.space)
            for use in (*self._beside.values(), self._quarantine):
                total = total.plus(Space(use.bytes, use.inodes))
            return total

    def own(self, ground: Ground, about: About) -> Space:
        measured = self._remembered.measured.get(key_of_ground(ground))
        if measured is not None and measured.id == about.id:
            return measured.space
        return Space(about.own_bytes, about.own_inodes or about.directories)

    def kinds(self) -> dict[CacheKind, KindUse]:
        grounds = self._snapshots.grounds()
        found: dict[CacheKind, KindUse] = {
            "blobs": KindUse(
                entries=self._blobs.count, bytes=self._blobs.bytes, inodes=self._blobs.count
            )
        }
        names: tuple[tuple[CacheKind, str], ...] = (("snapshots", "snapshot"), ("layers", "layer"))
        for name, kind in names:
            own = [self.own(each, about) for each, about in grounds.items() if each.kind == kind]
            found[name] = _sum(own)
        with self._lock:
            found.update(self._beside)
            spaces = list(self._workspaces.values())
            found["live_workspaces"] = _sum([each.space for each in spaces if not each.kept])
            found["kept_workspaces"] = _sum([each.space for each in spaces if each.kept])
            found["quarantine"] = self._quarantine
        return found

    def workspace(self, run: str) -> Space:
        with self._lock:
            known = self._workspaces.get(run)
            return known.space if known is not None else NOTHING

    # -- keeping up --------------------------------------------------------------------------------

    def refresh(self, kept: dict[str, bool], stop: threading.Event, *, hurry: bool = False) -> None:
        """Measure what is new or alive. `kept`: by run, whether it is over."""
        rest = None if hurry else _rest(stop)
        with contextlib.suppress(_StoppedError):
            self._measure_grounds(stop, rest)
            self._measure_workspaces(kept, stop, rest)
            self._quarantine = _measure_quarantine(self._layout.quarantine, rest)
            for kind, folder in self._layout.beside.items():
                space = _measure_inside(folder, rest)
                self._beside[kind] = KindUse(
                    entries=space.inodes, bytes=space.bytes, inodes=space.inodes
                )

    def look_at_quarantine(self) -> None:
        """Measure it where something came or went since: damage is to be seen at once. OSError."""
        changed = self._layout.quarantine.stat().st_mtime_ns
        if changed != self._quarantine_changed:
            self._quarantine = _measure_quarantine(self._layout.quarantine, None)
            self._quarantine_changed = changed

    def _measure_grounds(
        self, stop: threading.Event, rest: Callable[[], None] | None, *, again: bool = False
    ) -> int:
        """Gives how many bytes the earlier figures were wrong by."""
        grounds = self._snapshots.grounds()
        known = self._remembered.measured
        wrong = 0
        for ground, about in grounds.items():
            before = known.get(key_of_ground(ground))
            is_known = before is not None and before.id == about.id
            if stop.is_set() or (is_known and not again):
                continue
            try:
                space = measure(self._snapshots.root(ground).parent, with_links=False, rest=rest)
            except OSError:
                continue  # evicted meanwhile
            if is_known and before is not None:
                wrong += abs(before.bytes - space.bytes)
            known[key_of_ground(ground)] = Measured(about.id, space.bytes, space.inodes)
        here = {key_of_ground(ground) for ground in grounds}
        for key in set(known) - here:
            known.pop(key, None)
        return wrong

    def _measure_workspaces(
        self, kept: dict[str, bool], stop: threading.Event, rest: Callable[[], None] | None
    ) -> None:
        now = time.monotonic()
        for run, is_kept in kept.items():
            known = self._workspaces.get(run)
            if stop.is_set():
                return
            if known is not None and (
                (known.kept and is_kept and known.whole)
                or (known.kept == is_kept and now - known.measured_at < _PATIENCE * known.took)
            ):
                continue
            began = time.monotonic()
            most = 0 if is_kept else _WORKSPACE_INODES
            try:
                space = measure(
                    self._layout.runs / run, with_links=True, rest=rest, most_inodes=most
                )
            except OSError:
                continue  # gone, or on its way
            with self._lock:
                self._workspaces[run] = _Workspace(
                    space, is_kept, now, time.monotonic() - began, whole=not most
                )
        with self._lock:
            for run in [run for run in self._workspaces if run not in kept]:
                del self._workspaces[run]

    def workspace_changed(self, run: str) -> None:
        """Measure it again, though it is kept."""
        with self._lock:
            self._workspaces.pop(run, None)

    # -- the full count ----------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._next_count

    def count(self, stop: threading.Event, *, hurry: bool = False) -> int:
        """Count everything, and put right what differs; gives by how many bytes. Raises OSError."""
        rest = None if hurry else _rest(stop)
        began = time.monotonic()
        self._next_count = time.monotonic() + FIRST_COUNT_SECONDS  # unless it comes to its end
        try:
            wrong_blobs = self._count_blobs(stop, rest)
            wrong_grounds = self._measure_grounds(stop, rest, again=True)
        except _StoppedError:
            return 0
        if wrong_blobs is None:
            return 0
        self._next_count = time.monotonic() + COUNT_EVERY_SECONDS
        state = self._remembered
        first, state.counted_at = not state.counted_at, time.time()
        wrong = wrong_blobs + wrong_grounds
        if wrong and not first:
            state.corrections += 1
            state.corrected_bytes += wrong
            log.warning("cache.accounts_mended", blob_bytes=wrong_blobs, own_bytes=wrong_grounds)
        log.info(
            "cache.counted",
            blobs=self._blobs.count,
            blob_bytes=self._blobs.bytes,
            wrong_bytes=wrong,
            seconds=round(time.monotonic() - began, 3),
        )
        return wrong

    def _count_blobs(self, stop: threading.Event, rest: Callable[[], None] | None) -> int | None:
        """None where so much comes and goes that no count is right."""
        for _ in range(_TRIES):
            before = self._blobs.counted()
            found = self._blobs.count_all(rest)
            if self._blobs.correct(before, found):
                return abs(found[1] - before[1])
            if stop.wait(_REST_SECONDS):
                raise _StoppedError
        return None


class _StoppedError(Exception):
    """The daemon leaves."""


def _rest(stop: threading.Event) -> Callable[[], None]:
    def rest() -> None:
        if stop.wait(_REST_SECONDS):
            raise _StoppedError

    return rest


def _sum(spaces: list[Space]) -> KindUse:
    return KindUse(
        entries=len(spaces),
        bytes=sum(space.bytes for space in spaces),
        inodes=sum(space.inodes for space in spaces),
    )


def _measure_inside(path: Path, rest: Callable[[], None] | None) -> Space:
    try:
        whole = measure(path, with_links=False, rest=rest)
        itself = path.stat().st_blocks * SECTOR_BYTES
    except OSError:
        return NOTHING
    return Space(max(0, whole.bytes - itself), max(0, whole.inodes - 1))


def _measure_quarantine(path: Path, rest: Callable[[], None] | None) -> KindUse:
    """A blob here counts, though trees on their way out still link to it; what a tree here links to
    is with the blobs.
    """
    total, notes = NOTHING, 0
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total = total.plus(measure(entry.path, with_links=False, rest=rest))
                    continue
                facts = entry.stat(follow_symlinks=False)
                total = total.plus(Space(facts.st_blocks * SECTOR_BYTES, 1))
                notes += entry.name.endswith(NOTE)
    return KindUse(entries=notes, bytes=total.bytes, inodes=total.inodes)

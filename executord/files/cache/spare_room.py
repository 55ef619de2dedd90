"""Room for what nobody waits for: what is free anyway, and what is handed back when it is needed.

Work ahead never evicts. What it has made is held for a while, so that it does not go before its
run comes; a run that finds no room otherwise gets all of these holds given up at once.
"""

import threading
from collections import OrderedDict

import structlog

from executord.core.reasons import Reason
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.sweeper import Sweeper
from executord.files.faults import fault

log = structlog.get_logger(__name__)

MAX_HOLDS = 128


class SpareRoom:
    """Blocks; safe in any thread. At most MAX_HOLDS holders: the oldest then lets go."""

    def __init__(self, sweeper: Sweeper, snapshots: Snapshots) -> None:
        self._sweeper = sweeper
        self._snapshots = snapshots
        self._holders: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, incoming_bytes: int, incoming_inodes: int = 0) -> None:
        """Raises DISK_FULL where that much does not fit without evicting anything."""
        limits = self._sweeper.limits
        on_disk = self._sweeper.free()
        room = int(limits.high_watermark * limits.max_size_bytes) - self._sweeper.used_bytes()
        free = on_disk.bytes - limits.min_free_bytes
        if min(room, free) < incoming_bytes:
            raise fault(
                Reason.DISK_FULL,
                f"{incoming_bytes} bytes would be fetched ahead; without evicting anything there "
                f"is room for {max(0, room)} in the file cache and for {max(0, free)} on its disk.",
                needed_bytes=incoming_bytes,
                room_bytes=max(0, room),
                free_bytes=max(0, free),
            )
        self._check_inodes(on_disk.inodes, incoming_inodes)

    def _check_inodes(self, on_disk: int | None, incoming: int) -> None:
        limits = self._sweeper.limits
        if limits.max_inodes:
            room = int(limits.high_watermark * limits.max_inodes)
            room -= self._sweeper.accounting.used().inodes
            if room < incoming:
                raise fault(
                    Reason.DISK_FULL,
                    f"{incoming} inodes would be made ahead; without evicting anything there is "
                    f"room for {max(0, room)} in the file cache.",
                    needed_inodes=incoming,
                    room_inodes=max(0, room),
                )
        if on_disk is not None and on_disk - limits.min_free_inodes < max(1, incoming):
            raise fault(
                Reason.DISK_FULL,
                f"{incoming} inodes would be made ahead; only {on_disk} are free on the file "
                f"cache's disk, of which {limits.min_free_inodes} have to stay free.",
                needed_inodes=incoming,
                free_inodes=on_disk,
            )

    def hold(self, tree: str, holder: str) -> None:
        with self._lock:
            self._holders[holder] = None
            self._holders.move_to_end(holder)
            self._snapshots.pin(tree, holder)
            while len(self._holders) > MAX_HOLDS:
                oldest, _ = self._holders.popitem(last=False)
                self._snapshots.unpin(oldest)

    def let_go(self, holder: str) -> None:
        with self._lock:
            if holder in self._holders:
                del self._holders[holder]
                self._snapshots.unpin(holder)

    def let_go_of_all(self) -> bool:
        """Whether there was anything held."""
        with self._lock:
            holders = list(self._holders)
            self._holders.clear()
            for holder in holders:
                self._snapshots.unpin(holder)
        if holders:
            log.info("ahead.given_up", holders=len(holders), why="a run needs the room")
        return bool(holders)

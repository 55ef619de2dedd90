"""The parts of the file cache, made once and shared by those who prepare, finish and tidy."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from executord.files.cache.blobs import Blobs
from executord.files.cache.damage_control import DamageControl
from executord.files.cache.inspection import Inspection
from executord.files.cache.integrity import Integrity
from executord.files.cache.layout import Layout
from executord.files.cache.objects import Revisions, Trees
from executord.files.cache.snapshot_builds import SnapshotBuilds
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.spare_room import SpareRoom
from executord.files.cache.sweeper import Sweeper
from executord.files.store.store import Store
from executord.files.store.transfer import Fetcher
from executord.files.workspace.keep import Keeper
from executord.files.workspace.modes.filling import Filling
from executord.files.workspace.workspace import Volumes, Workspaces

_LONG_THREADS = 4
_QUICK_THREADS = 2
AHEAD_THREADS = 2


def _threads(number: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix=f"files-{name}")


@dataclass(slots=True)
class Threads:
    """`long` may take minutes, `quick` milliseconds; `sweeping` is one, for the caretaker;
    `ahead` are for what nobody waits for.
    """

    long: ThreadPoolExecutor = field(default_factory=lambda: _threads(_LONG_THREADS, "long"))
    quick: ThreadPoolExecutor = field(default_factory=lambda: _threads(_QUICK_THREADS, "quick"))
    sweeping: ThreadPoolExecutor = field(default_factory=lambda: _threads(1, "sweep"))
    idle: ThreadPoolExecutor = field(default_factory=lambda: _threads(1, "idle"))
    ahead: ThreadPoolExecutor = field(default_factory=lambda: _threads(AHEAD_THREADS, "ahead"))

    def shut_down(self) -> None:
        """Waits for what is under way. Blocks."""
        for threads in (self.long, self.quick, self.sweeping, self.idle, self.ahead):
            threads.shutdown()


@dataclass(slots=True)
class Tally:
    """Files and bytes that Preparing found here, and those that it had to fetch."""

    hits_files: int = 0
    hits_bytes: int = 0
    misses_files: int = 0
    misses_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """`wake` lets the caretaker look at once; `leaving` is set when the daemon leaves."""

    layout: Layout
    blobs: Blobs
    trees: Trees
    revisions: Revisions
    snapshots: Snapshots
    workspaces: Workspaces
    filling: Filling
    sweeper: Sweeper
    spare: SpareRoom
    store: Store
    fetcher: Fetcher
    keeper: Keeper
    builds: SnapshotBuilds
    control: DamageControl
    integrity: Integrity
    inspection: Inspection
    volumes: Volumes
    threads: Threads
    tally: Tally
    wake: Callable[[], None]
    leaving: threading.Event

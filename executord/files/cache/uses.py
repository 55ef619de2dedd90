"""Which trees runs ask for, how often, and what having them again would cost.

Runs are told of at once and cheaply; the caretaker carries it on into the trace and to the disk.
"""

import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from executord.core import eviction
from executord.core.cache_trace import Use
from executord.core.run import StageCost
from executord.files.cache.remembered import Asked, Remembered, TreeUse
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.trace import TraceLog, parts_of

_MOST_WAITING = 10_000
_MOST_TREES = 50_000
_NAMES = struct.Struct(">Q25xQ")
_FORGET_BELOW = 0.01
_NEVER_USED = TreeUse(uses=0.0, last_used=0.0)


class _Told(NamedTuple):
    time: float
    tree: str
    cost: StageCost


class Uses:
    """Any thread may tell of a use. `flush` blocks, and is for one thread at a time."""

    def __init__(self, remembered: Remembered, snapshots: Snapshots, trace: TraceLog) -> None:
        self._remembered = remembered
        self._snapshots = snapshots
        self._trace = trace
        self._waiting: deque[_Told] = deque(maxlen=_MOST_WAITING)
        self._lock = threading.Lock()
        self.since_start = Asked(since=time.time())

    def tell(self, tree: str, cost: StageCost) -> None:
        """A run wanted the tree, and this is what having it ready took."""
        now = time.time()
        with self._lock:
            known = self._remembered.uses.get(tree, _NEVER_USED)
            uses = eviction.discounted(known.uses, now - known.last_used) + 1
            self._remembered.uses[tree] = TreeUse(uses, now)
            for asked in (self.since_start, self._remembered.asked):
                asked.since = asked.since or now
                asked.add(
                    files=cost.files_from_cache + cost.files_fetched,
                    size=cost.bytes_from_cache + cost.bytes_fetched,
                    missed_files=cost.files_fetched,
                    missed_bytes=cost.bytes_fetched,
                )
            self._waiting.append(_Told(now, tree, cost))

    def _learn(self, cost: StageCost, made_in_seconds: float) -> None:
        seconds = cost.seconds - made_in_seconds
        if seconds <= 0 or not cost.files_fetched:
            return
        self._remembered.fetch_cost.observe(
            files=cost.files_fetched, bytes_=cost.bytes_fetched, seconds=seconds
        )
        fetched = self._remembered.fetched
        fetched.files += cost.files_fetched
        fetched.bytes += cost.bytes_fetched
        fetched.seconds += seconds

    def of(self, tree: str) -> TreeUse:
        with self._lock:
            return self._remembered.uses.get(tree, _NEVER_USED)

    def flush(self) -> None:
        """Learn from what was told, and write the trace. Raises OSError."""
        told = []
        with self._lock:
            while self._waiting:
                told.append(self._waiting.popleft())
        recorded: list[Use] = []
        now_told: set[str] = set()
        for use in told:
            about = self._snapshots.find(use.tree)
            if about is None:
                continue  # gone again, or of a way that makes none
            with self._lock:
                self._learn(use.cost, about.made_in_seconds)
                per_file, per_byte = self._remembered.fetch_cost.per_file_and_byte
            is_told = self._trace.has_told(use.tree) or use.tree in now_told
            parts, one_in = ((), 1) if is_told else parts_of(self._names(use.tree))
            now_told.add(use.tree)
            recorded.append(
                Use(
                    time=use.time,
                    tree=use.tree,
                    way=use.cost.way,
                    files=about.files,
                    bytes=about.bytes,
                    own_bytes=about.own_bytes,
                    own_inodes=about.own_inodes,
                    own_seconds=about.made_in_seconds,
                    seconds_per_file=per_file,
                    seconds_per_byte=per_byte,
                    parts=parts,
                    one_in=one_in,
                )
            )
        self._trace.add(recorded)

    def read_trace(self) -> Iterator[Use]:
        """What was recorded, the oldest first. Raises OSError."""
        return self._trace.read()

    def _names(self, tree: str) -> Iterator[tuple[int, int]]:
        """Of all blobs that it needs, those of what it stands on too."""
        ground = self._snapshots.ground_of(tree)
        for each in self._snapshots.chain(ground) if ground is not None else ():
            try:
                data = self._snapshots.records_path(each).read_bytes()
            except FileNotFoundError:
                continue  # evicted meanwhile
            yield from _NAMES.iter_unpack(data)

    def forget_old(self, here: set[str]) -> None:
        """Trees that are not here, and that were hardly ever used."""
        now = time.time()
        with self._lock:
            uses = self._remembered.uses
            for tree, use in list(uses.items()):
                if tree not in here and eviction.discounted(
                    uses[tree].uses, now - use.last_used
                ) < (1.0 if len(uses) > _MOST_TREES else _FORGET_BELOW):
                    del uses[tree]

"""A recorded trace replayed against caches of other sizes, and with other ways to choose victims.

Trees come with their blobs; a tree that is not there costs the making of it and the fetching of
the blobs that are missing. Room is made as the daemon makes it: past the high watermark, down to
the low one. The bound is what no cache of that size could beat that knew the future: every
interval between two uses takes space for its time; the ones worth most for their space and time
are granted until the cache's whole space over the whole time is used up (PFOO-L, Berger et al.,
"Practical Bounds on Optimal Caching with Variable Object Sizes", 2018). A shared part's space
counts in equal shares for all trees that ever hold it, which can only make the bound looser.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from executord.core import eviction
from executord.core.cache_trace import BLOCK_BYTES, TracePart, Use
from executord.core.eviction import Evictable, Part, Rank, Space

Policy = Literal["lru", "worth"]
RANKS: Mapping[Policy, Rank] = {"lru": eviction.by_last_use, "worth": eviction.by_worth}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one replay. Hits are those of the uses after each tree's or blob's first one too."""

    policy: str
    size_bytes: int
    runs: int
    run_hits: float
    files: float
    file_hits: float
    bytes: float
    byte_hits: float
    seconds: float
    evictions: int = 0

    @property
    def run_ratio(self) -> float:
        return self.run_hits / self.runs if self.runs else 0.0

    @property
    def file_ratio(self) -> float:
        return self.file_hits / self.files if self.files else 0.0

    @property
    def byte_ratio(self) -> float:
        return self.byte_hits / self.bytes if self.bytes else 0.0


@dataclass(frozen=True, slots=True)
class _Class:
    """Blobs that are in exactly the same trees of the trace."""

    bytes: int
    files: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Tree:
    own: Space
    own_seconds: float
    parts: tuple[int, ...]
    bytes: float
    files: float


class Trace:
    """Uses in the order of time, their blobs grouped by who shares them."""

    def __init__(self, uses: Iterable[Use]) -> None:
        ordered = sorted(uses, key=lambda use: use.time)
        first: dict[str, Use] = {}
        for use in ordered:
            known = first.get(use.tree)
            if known is None or (use.parts and not known.parts):
                first[use.tree] = use
        self.times = [use.time for use in ordered]
        names = list(first)
        numbers = {name: number for number, name in enumerate(names)}
        self.uses = [numbers[use.tree] for use in ordered]
        self.classes, members = _classes([first[name] for name in names])
        self.trees = [
            self._tree(first[name], tuple(parts))
            for name, parts in zip(names, members, strict=True)
        ]

    def _tree(self, use: Use, parts: tuple[int, ...]) -> _Tree:
        return _Tree(
            own=Space(use.own_bytes, use.own_inodes),
            own_seconds=use.own_seconds,
            parts=parts,
            bytes=sum(self.classes[part].bytes for part in parts),
            files=sum(self.classes[part].files for part in parts),
        )

    @property
    def bytes(self) -> int:
        """What a cache would hold that never evicts."""
        return sum(tree.own.bytes for tree in self.trees) + sum(part.bytes for part in self.classes)


def _classes(trees: Sequence[Use]) -> tuple[list[_Class], list[list[int]]]:
    """The classes, and by tree which of them it holds."""
    held_by: dict[int, list[int]] = defaultdict(list)
    facts: dict[int, tuple[float, float, float]] = {}
    for number, use in enumerate(trees):
        for part in use.parts:
            held_by[part.id].append(number)
            if part.id not in facts:
                facts[part.id] = _stands_for(part, use)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for part_id, holders in held_by.items():
        groups[tuple(holders)].append(part_id)
    classes: list[_Class] = []
    members: list[list[int]] = [[] for _ in trees]
    for together, part_ids in groups.items():
        for holder in together:
            members[holder].append(len(classes))
        size, files, seconds = map(sum, zip(*(facts[part] for part in part_ids), strict=True))
        classes.append(_Class(int(size), files, seconds))
    return classes, members


def _stands_for(part: TracePart, use: Use) -> tuple[float, float, float]:
    """Bytes, files and seconds of fetching them."""
    blocks = max(part.blocks, use.one_in)
    files = blocks / max(part.blocks, 1)
    size = float(blocks * BLOCK_BYTES if part.blocks else 0)
    return size, files, files * use.seconds_per_file + size * use.seconds_per_byte


def simulate(
    trace: Trace, *, size_bytes: int, policy: Policy, low: float = 0.8, high: float = 0.9
) -> Outcome:
    """Replay it against a cache that may hold `size_bytes`; the watermarks are shares of that."""
    cache = _Cache(trace, RANKS[policy])
    seen = _Counts()
    for time, number in zip(trace.times, trace.uses, strict=True):
        tree = trace.trees[number]
        seen.runs += 1
        seen.files += tree.files
        seen.bytes += tree.bytes
        missing = cache.missing(number)
        seen.file_misses += sum(trace.classes[part].files for part in missing)
        seen.byte_misses += sum(trace.classes[part].bytes for part in missing)
        seen.seconds += sum(trace.classes[part].seconds for part in missing)
        if number not in cache.last_used:
            seen.run_misses += 1
            seen.seconds += tree.own_seconds
        cache.use(number, time)
        if cache.bytes > high * size_bytes:
            cache.evict(int(cache.bytes - low * size_bytes), time, spare=number)
    return Outcome(
        policy=policy,
        size_bytes=size_bytes,
        runs=seen.runs,
        run_hits=seen.runs - seen.run_misses,
        files=seen.files,
        file_hits=seen.files - seen.file_misses,
        bytes=seen.bytes,
        byte_hits=seen.bytes - seen.byte_misses,
        seconds=seen.seconds,
        evictions=cache.evictions,
    )


@dataclass(slots=True)
class _Counts:
    runs: int = 0
    run_misses: int = 0
    files: float = 0.0
    file_misses: float = 0.0
    bytes: float = 0.0
    byte_misses: float = 0.0
    seconds: float = 0.0


class _Cache:
    def __init__(self, trace: Trace, rank: Rank) -> None:
        self._trace = trace
        self._rank = rank
        self._parts = [Part(part.bytes, 0, part.seconds) for part in trace.classes]
        self._holders = [0] * len(trace.classes)
        self._uses: dict[int, float] = {}
        self.last_used: dict[int, float] = {}
        self.bytes = 0
        self.evictions = 0

    def missing(self, number: int) -> list[int]:
        return [part for part in self._trace.trees[number].parts if not self._holders[part]]

    def use(self, number: int, time: float) -> None:
        before = self.last_used.get(number)
        if before is None:
            self._uses[number] = 1.0
            self.bytes += self._trace.trees[number].own.bytes
            for part in self._trace.trees[number].parts:
                if not self._holders[part]:
                    self.bytes += self._parts[part].bytes
                self._holders[part] += 1
        else:
            self._uses[number] = eviction.discounted(self._uses[number], time - before) + 1
        self.last_used[number] = time

    def evict(self, need_bytes: int, now: float, *, spare: int) -> None:
        choice = eviction.choose_victims(
            [self._entry(number) for number in self.last_used],
            parts=self._parts,
            pinned={str(spare)},
            need=Space(need_bytes),
            now=now,
            rank=self._rank,
        )
        for victim in choice.victims:
            number = int(victim.key)
            del self.last_used[number], self._uses[number]
            for part in self._trace.trees[number].parts:
                self._holders[part] -= 1
        self.bytes -= choice.freed_bytes
        self.evictions += len(choice.victims)

    def _entry(self, number: int) -> Evictable:
        tree = self._trace.trees[number]
        return Evictable(
            key=str(number),
            last_used=self.last_used[number],
            own_bytes=tree.own.bytes,
            own_seconds=tree.own_seconds,
            parts=tree.parts,
            uses=self._uses[number],
        )


@dataclass(frozen=True, slots=True)
class _Interval:
    """From one use to the next: what keeping it takes (bytes times uses) and saves."""

    area: float
    runs: float = 0.0
    files: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0


def bound(trace: Trace, *, size_bytes: int) -> Outcome:
    """What no cache of that size can beat. Each figure is bounded by itself."""
    parts, runs = _intervals(trace)
    room = float(size_bytes) * len(trace.uses)
    everything = _Totals.of(trace)
    return Outcome(
        policy="clairvoyant bound",
        size_bytes=size_bytes,
        runs=len(trace.uses),
        run_hits=_granted(((item.runs, item.area) for item in runs), room),
        files=everything.files,
        file_hits=_granted(((item.files, item.area) for item in parts), room),
        bytes=everything.bytes,
        byte_hits=_granted(((item.bytes, item.area) for item in parts), room),
        seconds=max(
            0.0,
            everything.seconds - _granted(((item.seconds, item.area) for item in parts), room),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Totals:
    files: float
    bytes: float
    seconds: float

    @classmethod
    def of(cls, trace: Trace) -> "_Totals":
        """If nothing were ever kept."""
        used = [trace.trees[number] for number in trace.uses]
        return cls(
            sum(tree.files for tree in used),
            sum(tree.bytes for tree in used),
            sum(
                tree.own_seconds + sum(trace.classes[part].seconds for part in tree.parts)
                for tree in used
            ),
        )


def largest_bytes(trace: Trace) -> int:
    """Of its trees with all their blobs: a tree in use stays, however small the cache is."""
    return max(
        (
            tree.own.bytes + sum(trace.classes[part].bytes for part in tree.parts)
            for tree in trace.trees
        ),
        default=0,
    )


def _intervals(trace: Trace) -> tuple[list[_Interval], list[_Interval]]:
    """Of parts and of what trees hold besides, each by itself; and of whole trees."""
    holders = Counter(part for tree in trace.trees for part in tree.parts)
    shares = [
        tree.own.bytes + sum(trace.classes[part].bytes / holders[part] for part in tree.parts)
        for tree in trace.trees
    ]
    last_part: dict[int, int] = {}
    last_tree: dict[int, int] = {}
    single: list[_Interval] = []
    whole: list[_Interval] = []
    for now, number in enumerate(trace.uses):
        tree = trace.trees[number]
        before = last_tree.get(number)
        if before is not None:
            own = float(tree.own.bytes * (now - before))
            single.append(_Interval(own, seconds=tree.own_seconds))
            whole.append(_Interval(shares[number] * (now - before), runs=1))
        last_tree[number] = now
        for part in tree.parts:
            before = last_part.get(part)
            if before is not None:
                held = trace.classes[part]
                single.append(
                    _Interval(
                        float(held.bytes * (now - before)),
                        files=held.files,
                        bytes=held.bytes,
                        seconds=held.seconds,
                    )
                )
            last_part[part] = now
    return single, whole


def _granted(intervals: Iterable[tuple[float, float]], room: float) -> float:
    """The most gain for that much area, if an interval may also be granted in part."""
    gain = 0.0
    wanted = [(worth, area) for worth, area in intervals if worth > 0]
    for worth, area in sorted(wanted, key=_density, reverse=True):
        if area > room:
            return gain + worth * room / area
        room -= area
        gain += worth
    return gain


def _density(interval: tuple[float, float]) -> float:
    worth, area = interval
    return worth / area if area > 0 else float("inf")

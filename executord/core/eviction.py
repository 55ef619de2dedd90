"""Which cache entries go when space is needed: a pure choice over values.

Entries may share parts (hardlinked blobs): a part is freed only when the last entry that holds it
goes, so what a victim really frees depends on who went before it. A layer stands on another
entry, and goes at the latest when that one does.

Least worth goes first: what it costs to get an entry again, times how likely it is to be asked
for, over the space that it takes, as in GreedyDual-Size-Frequency (Cherkasova 1998). A shared part
counts in equal shares for those that hold it, as cost and as space. Uses count for less as they
grow old, and the likelihood falls with the time since the last one; both take the place of that
algorithm's aging, and need no memory between sweeps. An entry most of whose parts somebody holds
who was used later is likely an old revision of that one: it is hardly ever asked for again. The
constants were chosen by replaying traces, see `tests/bench/evicting.py`.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

USES_HALF_LIFE_SECONDS = 7 * 86_400.0
_BURST_SECONDS = 60.0
_DENSITY_POWER = 0.7
_SUPERSEDED_WEIGHT = 0.95


class Space(NamedTuple):
    """Of a disk. Both are what a filesystem hands out, not what a file says it holds."""

    bytes: int
    inodes: int = 0

    def plus(self, other: "Space") -> "Space":
        return Space(self.bytes + other.bytes, self.inodes + other.inodes)

    def covers(self, need: "Space") -> bool:
        return self.bytes >= need.bytes and self.inodes >= need.inodes


NOTHING = Space(0, 0)


class Part(NamedTuple):
    """Something that several entries may hold. `seconds` is what fetching it again would take."""

    bytes: int
    inodes: int = 1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evictable:
    """Something that can be got again. Its own space and seconds are those besides its parts.

    `parts` are indices into the parts given along. `last_used` is in Unix seconds; `uses` have
    been discounted up to then. `base` is the key of the entry that it stands on, or "".
    """

    key: str
    last_used: float
    own_bytes: int
    own_inodes: int = 0
    own_seconds: float = 0.0
    parts: Sequence[int] = ()
    uses: float = 1.0
    base: str = ""

    @property
    def own(self) -> Space:
        return Space(self.own_bytes, self.own_inodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """`seconds` is what getting it again would take, `rank` what it was chosen by."""

    key: str
    freed: Space
    seconds: float
    rank: float

    @property
    def freed_bytes(self) -> int:
        return self.freed.bytes


class Choice(NamedTuple):
    """Victims in the order in which they go, and the parts that nobody holds afterwards."""

    victims: tuple[Victim, ...]
    freed_parts: frozenset[int]

    @property
    def freed(self) -> Space:
        return Space(
            sum(victim.freed.bytes for victim in self.victims),
            sum(victim.freed.inodes for victim in self.victims),
        )

    @property
    def freed_bytes(self) -> int:
        return self.freed.bytes


class Weighed(NamedTuple):
    """What an entry is ranked by. `seconds` and `space` (a share of what is needed) include its
    shares of what it holds with others; `superseded` is the share of its parts that somebody
    holds who was used later.
    """

    entry: Evictable
    seconds: float
    space: float
    superseded: float
    now: float


Rank = Callable[[Weighed], float]
"""The lowest goes first."""


def by_worth(weighed: Weighed) -> float:
    if weighed.space <= 0:
        return 0.0
    density = (weighed.seconds / weighed.space) ** _DENSITY_POWER
    return float(likelihood(weighed.entry, weighed.now, weighed.superseded) * density)


def by_last_use(weighed: Weighed) -> float:
    return weighed.entry.last_used


def likelihood(entry: Evictable, now: float, superseded: float = 0.0) -> float:
    """In proportion to the uses to be expected a second: many and recent ones promise more."""
    idle = max(0.0, now - entry.last_used)
    uses = discounted(entry.uses, idle)
    return uses / (idle + _BURST_SECONDS) * (1 - _SUPERSEDED_WEIGHT * superseded)


def discounted(uses: float, seconds: float) -> float:
    """What uses are worth that much later."""
    return float(uses * 0.5 ** (max(0.0, seconds) / USES_HALF_LIFE_SECONDS))


def choose_victims(
    entries: Iterable[Evictable],
    *,
    parts: Sequence[Part],
    pinned: AbstractSet[str],
    need: Space,
    now: float,
    rank: Rank = by_worth,
) -> Choice:
    """The least worth first, never a pinned one, until `need` is really freed.

    What turns out not to be needed stays. What is chosen may fall short where all else is pinned.
    """
    field = _Field(entries, parts, need, now, rank)
    field.take(pinned)
    field.spare()
    return field.choice()


def own_space(entries: Sequence[Evictable], parts: Sequence[Part]) -> dict[str, Space]:
    """What each entry would free if only it went."""
    holders = _count_holders(entries, len(parts))
    found = {}
    for entry in entries:
        alone = [parts[part] for part in entry.parts if holders[part] == 1]
        found[entry.key] = Space(
            entry.own_bytes + sum(part.bytes for part in alone),
            entry.own_inodes + sum(part.inodes for part in alone),
        )
    return found


class _Field:
    """Who is still there, who holds what, and what has been freed so far."""

    def __init__(
        self,
        entries: Iterable[Evictable],
        parts: Sequence[Part],
        need: Space,
        now: float,
        rank: Rank,
    ) -> None:
        self._entries = {entry.key: entry for entry in entries}
        self._parts = parts
        self._need = need
        self._now = now
        self._rank = rank
        self._holders = _count_holders(self._entries.values(), len(parts))
        self._on: dict[str, list[str]] = defaultdict(list)
        for entry in self._entries.values():
            if entry.base:
                self._on[entry.base].append(entry.key)
        self._superseded = _superseded(self._entries.values(), parts)
        self._freed = NOTHING
        self._gone: dict[str, float] = {}
        byte, inode = need
        self._per_byte = 1 / byte if byte > 0 else 0.0
        self._per_inode = 1 / inode if inode > 0 else 0.0

    # -- taking ------------------------------------------------------------------------------------

    def take(self, pinned: AbstractSet[str]) -> None:
        if self._freed.covers(self._need):
            return
        queue = [
            (self._score(key), entry.last_used, key)
            for key, entry in self._entries.items()
            if key not in pinned
        ]
        heapq.heapify(queue)
        while queue and not self._freed.covers(self._need):
            _, last_used, key = heapq.heappop(queue)
            if key in self._gone:
                continue
            score = self._score(key)
            if queue and score > queue[0][0]:  # it holds more alone than when it was put there
                heapq.heappush(queue, (score, last_used, key))
                continue
            group = self._with_dependents(key)
            if pinned.isdisjoint(group):
                for member in group:
                    self._release(member, score)

    def _score(self, key: str) -> float:
        """Of the entry and all that falls with it: their ranks, weighed by their space."""
        group = self._with_dependents(key)
        if len(group) == 1:
            return self._rank_of(key)[0]
        ranks = [self._rank_of(member) for member in group]
        if self._rank is by_last_use:
            return max(score for score, _ in ranks)
        total = sum(space for _, space in ranks)
        return sum(score * space for score, space in ranks) / total if total else 0.0

    def _rank_of(self, key: str) -> tuple[float, float]:
        entry = self._entries[key]
        parts, holders = self._parts, self._holders
        size, inodes, seconds = float(entry.own_bytes), float(entry.own_inodes), entry.own_seconds
        for part in entry.parts:
            share = 1 / holders[part]
            held = parts[part]
            size += held.bytes * share
            inodes += held.inodes * share
            seconds += held.seconds * share
        space = size * self._per_byte + inodes * self._per_inode
        weighed = Weighed(entry, seconds, space, self._superseded[key], self._now)
        return self._rank(weighed), space

    def _with_dependents(self, key: str) -> list[str]:
        """It and whatever would have nothing to stand on; the topmost first."""
        group = [key]
        for member in group:
            group.extend(above for above in self._on.get(member, ()) if above not in self._gone)
        group.reverse()
        return group

    def _release(self, key: str, score: float) -> None:
        entry = self._entries[key]
        self._freed = self._freed.plus(entry.own)
        for part in entry.parts:
            self._holders[part] -= 1
            if self._holders[part] == 0:
                self._freed = self._freed.plus(Space(*self._parts[part][:2]))
        self._gone[key] = score

    # -- sparing -----------------------------------------------------------------------------------

    def spare(self) -> None:
        """Give back the worthiest of what the others' going has made needless."""
        for key in sorted(self._gone, key=lambda key: (-self._gone[key], key)):
            entry = self._entries[key]
            if entry.base in self._gone:
                continue
            lost = entry.own
            for part in entry.parts:
                if self._holders[part] == 0:
                    lost = lost.plus(Space(*self._parts[part][:2]))
            left = Space(self._freed.bytes - lost.bytes, self._freed.inodes - lost.inodes)
            if not left.covers(self._need):
                continue
            self._freed = left
            for part in entry.parts:
                self._holders[part] += 1
            del self._gone[key]

    def choice(self) -> Choice:
        holders = list(self._holders)
        for key in self._gone:
            for part in self._entries[key].parts:
                holders[part] += 1
        victims, freed_parts = [], set()
        for key, score in self._gone.items():
            entry = self._entries[key]
            freed, seconds = entry.own, entry.own_seconds
            for part in entry.parts:
                holders[part] -= 1
                if holders[part] == 0:
                    freed_parts.add(part)
                    freed = freed.plus(Space(*self._parts[part][:2]))
                    seconds += self._parts[part].seconds
            victims.append(Victim(key=key, freed=freed, seconds=seconds, rank=score))
        return Choice(tuple(victims), frozenset(freed_parts))


def _superseded(entries: Collection[Evictable], parts: Sequence[Part]) -> dict[str, float]:
    """By key, the share of its parts' bytes that an entry used later holds as well."""
    latest = [float("-inf")] * len(parts)
    for entry in entries:
        for part in entry.parts:
            latest[part] = max(latest[part], entry.last_used)
    found = {}
    for entry in entries:
        held = sum(parts[part].bytes for part in entry.parts)
        later = sum(parts[part].bytes for part in entry.parts if latest[part] > entry.last_used)
        found[entry.key] = later / held if held else 0.0
    return found


def _count_holders(entries: Iterable[Evictable], parts: int) -> list[int]:
    holders = [0] * parts
    for entry in entries:
        for part in entry.parts:
            holders[part] += 1
    return holders

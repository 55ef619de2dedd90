"""Which cache entries go when space is needed: a pure choice over values.

Entries may share parts (hardlinked blobs): a part is freed only when the last entry that holds it
goes, so what a victim really frees depends on who went before it.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Evictable:
    """Something that can be got again. `own_bytes` is what it alone holds besides its parts.

    `parts` are indices into the sizes of shared parts. `last_used` is in Unix seconds.
    """

    key: str
    last_used: float
    own_bytes: int
    parts: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    key: str
    freed_bytes: int


class Choice(NamedTuple):
    """Victims in the order in which they go, and the parts that nobody holds afterwards."""

    victims: tuple[Victim, ...]
    freed_parts: frozenset[int]

    @property
    def freed_bytes(self) -> int:
        return sum(victim.freed_bytes for victim in self.victims)


def choose_victims(
    entries: Iterable[Evictable],
    *,
    part_bytes: Sequence[int],
    pinned: AbstractSet[str],
    need_bytes: int,
) -> Choice:
    """The least recently used first, never a pinned one, until `need_bytes` are really freed.

    One that by then frees nothing is still taken when it is older than the last victim: its parts
    come free with somebody after it. What is chosen may fall short where everything is pinned.
    """
    everyone = sorted(entries, key=lambda entry: (entry.last_used, entry.key))
    holders = _count_holders(everyone, len(part_bytes))
    victims: list[Victim] = []
    freed_parts: set[int] = set()
    freed_bytes = 0
    for entry in everyone:
        if freed_bytes >= need_bytes:
            break
        if entry.key in pinned:
            continue
        gone = _release(entry.parts, holders)
        freed = entry.own_bytes + sum(part_bytes[part] for part in gone)
        freed_parts.update(gone)
        freed_bytes += freed
        victims.append(Victim(key=entry.key, freed_bytes=freed))
    return Choice(tuple(victims), frozenset(freed_parts))


def own_bytes(entries: Sequence[Evictable], part_bytes: Sequence[int]) -> dict[str, int]:
    """What each entry would free if only it went."""
    holders = _count_holders(entries, len(part_bytes))
    return {
        entry.key: entry.own_bytes
        + sum(part_bytes[part] for part in entry.parts if holders[part] == 1)
        for entry in entries
    }


def _count_holders(entries: Iterable[Evictable], parts: int) -> list[int]:
    holders = [0] * parts
    for entry in entries:
        for part in entry.parts:
            holders[part] += 1
    return holders


def _release(parts: Sequence[int], holders: list[int]) -> list[int]:
    gone = []
    for part in parts:
        holders[part] -= 1
        if holders[part] == 0:
            gone.append(part)
    return gone

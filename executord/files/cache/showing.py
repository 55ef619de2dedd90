"""What the cache holds, as others are shown it; and why something goes."""

from executord.core import eviction
from executord.core.eviction import Evictable
from executord.files.cache.inventory import Inventory
from executord.files.cache.snapshots import Snapshots
from executord.files.model import digests
from executord.ports import CacheEntry


def show_entries(inventory: Inventory, snapshots: Snapshots) -> dict[str, CacheEntry]:
    """By key, each with what it would free alone, and who holds it."""
    own = eviction.own_space(list(inventory.entries.values()), inventory.parts)
    pinned = snapshots.pinned()
    holders = snapshots.holders()
    per_part = [part.seconds for part in inventory.parts]
    found = {}
    for key, entry in inventory.entries.items():
        loose = inventory.loose.get(key)
        cost = entry.own_seconds + sum(per_part[part] for part in entry.parts)
        if loose is not None:
            found[key] = CacheEntry(
                digest=digests.PREFIX + loose.first,
                kind="blob",
                size_bytes=loose.bytes,
                own_bytes=loose.bytes,
                own_inodes=loose.files,
                files=loose.files,
                last_used=loose.last_used,
                cost_seconds=cost,
            )
            continue
        held = inventory.grounds[key]
        ground, about = held.ground, held.about
        is_held = ground in holders
        found[key] = CacheEntry(
            digest=ground.tree,
            kind=ground.kind,
            size_bytes=about.bytes,
            own_bytes=own[key].bytes,
            own_inodes=own[key].inodes,
            files=about.files,
            last_used=held.last_used,
            pinned_by=holders.get(ground, ()),
            base=about.base,
            depth=about.depth,
            uses=held.uses,
            cost_seconds=cost,
            state=(
                "ready"
                if not is_held
                else "in use"
                if set(holders[ground]) & set(pinned.get(ground.tree, ()))
                else "held below"
            ),
        )
    return found


def why_it_goes(entry: Evictable, seconds: float, now: float) -> str:
    """Of a victim, for people: when it was used, and what it costs to have again."""
    idle = max(0.0, now - entry.last_used)
    uses = round(entry.uses)
    times = "once" if uses <= 1 else f"{uses} times"
    return f"used {times}, last {_span(idle)} ago; {_span(seconds)} to get again"


def _span(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} seconds" if seconds >= 1 else f"{seconds * 1000:.0f} ms"

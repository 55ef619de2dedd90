"""Which of the grounds that are here a tree is best laid upon, if upon any.

The cost of a layer is what has to be made for it, and a price for each layer that a run then looks
through; that of a whole snapshot is all of the tree. Both are counted in entries. The walk over a
candidate's difference ends as soon as it is dearer than the best so far.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from executord.files.cache.grounds import About, Ground
from executord.files.cache.objects import Trees
from executord.files.cache.snapshots import Snapshots
from executord.files.model import trees
from executord.files.model.delta import (
    Difference,
    GetRaw,
    TooDearError,
    UnknownTreeError,
    entries_apart,
    find_delta,
)
from executord.files.model.walk import Claim

_MOST_CANDIDATES = 64
_SECONDS_FOR_BETTER = 0.004
_MOST_ENTRIES = 100_000  # in a layer: they are in memory while it is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """In entries to make. A tree of at most `small_tree` is made whole in a few milliseconds. Each
    layer that a run looks through costs `share` of the tree's entries, and `least` at the least. A
    layer that costs more than `most_share` of its tree is not worth its depth.
    """

    small_tree: int = 256
    least: int = 64
    share: float = 0.01
    most_share: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """`cost` is in entries, the price of the depth included."""

    ground: Ground
    about: About
    difference: Difference
    cost: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    ground: Ground
    about: About
    least: int
    price: int


class Nearest:
    """Blocks. `fetch` gives trees as written, from wherever they are; raises FaultError."""

    def __init__(self, snapshots: Snapshots, local: Trees, fetch: GetRaw, prices: Prices) -> None:
        self._prices = prices
        self._snapshots = snapshots
        self._local = local
        self._fetch = fetch

    def choose(self, tree: str, likely: Sequence[str] = ()) -> Near | None:
        """None where the whole tree costs less. `likely` are trees to look at first."""
        (root,) = self._fetch([tree])
        count = trees.totals(trees.decode_checked(root))[1]
        prices = self._prices
        if count <= prices.small_tree:
            return None
        price = max(prices.least, int(count * prices.share))
        most = min(int(count * prices.most_share), _MOST_ENTRIES)
        best: Near | None = None
        until = math.inf
        for candidate in self._candidates(root, likely, price):
            if candidate.least + candidate.price >= (best.cost if best else most):
                continue
            if time.monotonic() >= until:
                break
            found = self._look_at(candidate, tree, most, best, until)
            if found is not None:
                best = found
                until = min(until, time.monotonic() + _SECONDS_FOR_BETTER)
        return best

    def _look_at(
        self, candidate: _Candidate, tree: str, most: int, best: Near | None, until: float
    ) -> Near | None:
        """None where it is no better. Trees are fetched for the first one only."""
        about = candidate.about
        try:
            difference = find_delta(
                candidate.ground.tree,
                Claim(about.bytes, about.entries_in_all),
                tree,
                old=self._here,
                new=self._fetch if best is None else self._here,
                most=(best.cost if best else most) - candidate.price - 1,
                until=until,
            )
        except (TooDearError, UnknownTreeError):
            return None
        return Near(
            ground=candidate.ground,
            about=about,
            difference=difference,
            cost=difference.cost + candidate.price,
        )

    def _here(self, digests: Sequence[str]) -> list[bytes]:
        found = []
        for digest in digests:
            data = self._local.raw(digest)
            if data is None:
                raise UnknownTreeError
            found.append(data)
        return found

    def _candidates(self, root: bytes, likely: Sequence[str], price: int) -> list[_Candidate]:
        """The likely ones first, then those that seem nearest by their root alone."""
        first: list[_Candidate] = []
        others: list[_Candidate] = []
        grounds = self._snapshots.by_last_use()
        order = {tree: number for number, tree in enumerate(likely)}
        grounds.sort(key=lambda each: order.get(each[0].tree, len(order)))  # stable
        whole = {ground.tree for ground, _ in grounds if ground.kind == "snapshot"}
        for ground, about in grounds:
            if len(first) + len(others) >= _MOST_CANDIDATES:
                break
            if about.depth >= self._snapshots.most_layers:
                continue
            if ground.kind == "layer" and ground.tree in whole:
                continue
            data = self._local.raw(ground.tree)
            if data is None:
                continue
            was, now = entries_apart(data, root)
            before, after = (
                {(entry.name, entry.content) for entry in entries} for entries in (was, now)
            )
            least = len(before ^ after) // 2
            found = _Candidate(ground, about, least, price * (about.depth + 1))
            (first if ground.tree in order else others).append(found)
        others.sort(key=lambda each: each.least + each.price)
        return first + others

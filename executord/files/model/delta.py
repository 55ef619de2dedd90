"""What has to be laid over one tree to make it another, found in the bytes of those trees alone
that differ.

Trees are compared as they are written. Their entries are in order, so what two of them share at
the beginning and at the end is skipped with a few comparisons of memory, and only what lies
between is decoded: a directory of a hundred files, one of them changed, costs some microseconds.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from executord.files.faults import corrupt
from executord.files.model import trees
from executord.files.model.closure import MAX_DEPTH, MAX_ENTRIES
from executord.files.model.trees import Entry, Kind
from executord.files.model.walk import Claim

_IS_DIRECTORY = Kind.DIRECTORY
_HEAD = b'{"entries":['
_TAIL = b"]}"
_BETWEEN = b'},{"kind":"'  # in no name or target: there a quote has a backslash before it
_READ_AT_ONCE = 32
_A_CHANGED_ENTRY = 512  # bytes: one changed file among many, the usual case
_DIRECTORY_COST = 3  # mkdir, open and chown, beside a link
_LEAST_COST = _DIRECTORY_COST + 1  # of a directory that is other than before


class TooDearError(Exception):
    """The difference is larger than was asked for."""


class UnknownTreeError(Exception):
    """A tree of the base is not here."""


@dataclass(slots=True)
class Delta:
    """One directory that is there before and after. `path` is relative, "" for the root.

    `made` are files and links that are new or other, and directories that are new as a whole;
    those in `replaced` have to hide what is below. `merged` are the directories that differ.
    """

    path: str
    digest: str
    claim: Claim
    made: list[Entry] = field(default_factory=list)
    whiteouts: list[str] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    merged: list["Delta"] = field(default_factory=list)
    gone: list[Entry] = field(default_factory=list)
    cost: int = 0
    entry: Entry | None = None
    old: Entry | None = None

    def walk(self) -> Iterator["Delta"]:
        """Parents before their children."""
        pending = [self]
        while pending:
            delta = pending.pop()
            yield delta
            pending.extend(reversed(delta.merged))


GetRaw = Callable[[Sequence[str]], Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`root` and all below; its cost in entries to make, weighed."""

    root: Delta
    cost: int
    claim: Claim


def find_delta(
    base: str,
    claim: Claim,
    wanted: str,
    *,
    old: GetRaw,
    new: GetRaw,
    most: int,
    until: float = math.inf,
) -> Difference:
    """From `base`, whose totals are known, to `wanted`. `old` and `new` give trees as written.

    What the trees claim of their children's size is checked against the base's. Raises TooDearError
    as soon as it costs more than `most`, or when it is later than `until` on the monotonic clock;
    UnknownTreeError, FaultError.
    """
    root = Delta("", wanted, claim)
    level = [(root, base, wanted)]
    spent = 0
    levels = [[root]]
    at_once = _READ_AT_ONCE if until < math.inf else MAX_ENTRIES
    while level:
        below: list[tuple[Delta, str, str]] = []
        for begin in range(0, len(level), at_once):
            some = level[begin : begin + at_once]
            if time.monotonic() > until:
                raise TooDearError
            olds = old([each[1] for each in some])
            news = new([each[2] for each in some])
            for (delta, _, _), before, after in zip(some, olds, news, strict=True):
                spent += _compare(delta, before, after, below)
                if spent + len(below) * _LEAST_COST > most:
                    raise TooDearError
        level = below
        levels.append([delta for delta, _, _ in below])
        if len(levels) > MAX_DEPTH:
            raise corrupt(f"The tree {wanted} is deeper than {MAX_DEPTH} directories.")
    for deltas in reversed(levels):
        for delta in deltas:
            _replace_what_is_cheaper_anew(delta)
    return Difference(root=root, cost=root.cost, claim=root.claim)


def entries_apart(before: bytes, after: bytes) -> tuple[list[Entry], list[Entry]]:
    """The entries of two written trees that may differ; those left out are equal."""
    start = _common_start(before, after)
    cut = before.rfind(_BETWEEN, 0, start)
    begin = cut + 2 if cut >= 0 else len(_HEAD)
    shared = _common_end(before, after, min(len(before), len(after)) - begin)
    found = before.find(_BETWEEN, len(before) - shared)
    kept = len(before) - found - 1 if found >= 0 else len(_TAIL)
    return (
        _decoded(before[begin : len(before) - kept]),
        _decoded(after[begin : len(after) - kept]),
    )


def _decoded(window: bytes) -> list[Entry]:
    return trees.decode_checked(_HEAD + window + _TAIL) if len(window) > 1 else []


def _common_start(a: bytes, b: bytes) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if b.startswith(a[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(a: bytes, b: bytes, most: int) -> int:
    low, high = 0, max(0, most)
    end_a, end_b = len(a), len(b)
    nearly = high - _A_CHANGED_ENTRY
    if nearly > 0 and b.endswith(a[end_a - nearly :]):
        low = nearly
    while low < high:
        middle = (low + high + 1) // 2
        if b.endswith(a[end_a - middle : end_a - low], 0, end_b - low):
            low = middle
        else:
            high = middle - 1
    return low


def _compare(delta: Delta, before: bytes, after: bytes, below: list[tuple[Delta, str, str]]) -> int:
    """Fills in what differs on this level; gives its cost, or that of making it anew."""
    others = len(below)
    was, now = entries_apart(before, after)
    old = {entry.name: entry for entry in was}
    _check_claim(delta, was, now)
    cost = _DIRECTORY_COST
    prefix = f"{delta.path}/" if delta.path else ""
    for entry in now:
        known = old.pop(entry.name, None)
        if known is not None and known == entry:
            continue
        if known is not None and known.content == entry.content:
            raise corrupt(f"{entry.digest} is given two sizes.")
        if entry.kind is not _IS_DIRECTORY:
            if known is not None and known.kind is _IS_DIRECTORY:
                delta.gone.append(known)
            delta.made.append(entry)
            cost += 1
        elif known is not None and known.kind is _IS_DIRECTORY:
            claim = Claim(known.size, known.count)
            child = Delta(f"{prefix}{entry.name}", entry.digest, claim, entry=entry, old=known)
            delta.merged.append(child)
            below.append((child, known.digest, entry.digest))
        else:
            delta.made.append(entry)
            cost += _DIRECTORY_COST + entry.count
    for entry in old.values():
        delta.whiteouts.append(entry.name)
        if entry.is_directory:
            delta.gone.append(entry)
        cost += 1
    delta.cost = cost
    if delta.entry is None or cost <= _anew(delta):
        return cost
    del below[others:]
    return _anew(delta)


def _anew(delta: Delta) -> int:
    return _DIRECTORY_COST + 1 + delta.claim.entries


def _check_claim(delta: Delta, was: Sequence[Entry], now: Sequence[Entry]) -> None:
    """`claim` is the old totals on the way in, and the new ones on the way out."""
    size_before, count_before = trees.totals(was)
    size_after, count_after = trees.totals(now)
    claim = Claim(
        delta.claim.size - size_before + size_after,
        delta.claim.entries - count_before + count_after,
    )
    entry = delta.entry
    if entry is not None and claim != (entry.size, entry.count):
        raise corrupt(f"The tree {entry.digest} is not as large as its parent says.")
    if claim.entries > MAX_ENTRIES:
        raise corrupt(f"The tree {delta.digest} has more than {MAX_ENTRIES} entries.")
    delta.claim = claim


def _replace_what_is_cheaper_anew(delta: Delta) -> None:
    """Children first. A directory of which little is left is made as a whole."""
    merged = []
    for child in delta.merged:
        assert child.entry is not None
        assert child.old is not None
        anew = _anew(child)
        if child.cost > anew:
            delta.made.append(child.entry)
            delta.replaced.add(child.entry.name)
            delta.gone.append(child.old)
            delta.cost += anew
        else:
            merged.append(child)
            delta.cost += child.cost
    delta.merged = merged

"""Which queued run may begin: exact, in order of arrival, and without starvation.

Pure values. A `Ledger` holds what the node has and what it has promised; `reserve` and `release`
give a new one. CPUs are counted in whole nano-CPUs, as the engine counts them, so that many small
fractions add up to exactly what they should.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from executord.core.refusals import Refusal, RefusedError

_NANO = 1_000_000_000
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """An amount of what runs need: what a node has, or what one run is promised."""

    cpus: float
    memory_bytes: int
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A size of run: what each run of it gets, and how many may exist at once."""

    name: str
    cpus: float
    memory_bytes: int
    gpus: int = 0
    max_runs: int

    @property
    def capacity(self) -> Capacity:
        return Capacity(cpus=self.cpus, memory_bytes=self.memory_bytes, gpus=self.gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What one run holds from its admission until its container is gone."""

    tier: str
    capacity: Capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A queued run. A queue is a sequence of them, the first to be served first."""

    run_id: str
    tier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The node's capacity, its tiers, and what is promised to which run (by run id)."""

    host: Capacity
    tiers: Mapping[str, Tier]
    promised: Mapping[str, Promise] = field(default_factory=lambda: MappingProxyType({}))

    def total_promised(self) -> Capacity:
        held = [promise.capacity for promise in self.promised.values()]
        return Capacity(
            cpus=sum(_nano(c.cpus) for c in held) / _NANO,
            memory_bytes=sum(c.memory_bytes for c in held),
            gpus=sum(c.gpus for c in held),
        )

    def free(self) -> Capacity:
        """Never below zero, also where recovered runs hold more than the node now has."""
        total = self.total_promised()
        return Capacity(
            cpus=max(0, _nano(self.host.cpus) - _nano(total.cpus)) / _NANO,
            memory_bytes=max(0, self.host.memory_bytes - total.memory_bytes),
            gpus=max(0, self.host.gpus - total.gpus),
        )

    def runs_by_tier(self) -> Mapping[str, int]:
        return Counter(promise.tier for promise in self.promised.values())


def reserve(ledger: Ledger, run_id: str, tier: str, *, holds: Capacity | None = None) -> Ledger:
    """The ledger with a promise for the run; not checked against what is free.

    Runs that `next_admissible` names fit. A recovered run is promised again whatever the
    configuration says now, since it exists; `holds` says how much where its tier is gone or has
    changed. Raises ValueError for a run that has a promise already, and for an unknown tier
    without `holds`.
    """
    if run_id in ledger.promised:
        raise ValueError(f"run {run_id} has a slot already")
    if holds is None:
        if tier not in ledger.tiers:
            raise ValueError(f"run {run_id}: no tier {tier!r} to reserve a slot of")
        holds = ledger.tiers[tier].capacity
    promise = Promise(tier=tier, capacity=holds)
    return replace(ledger, promised=MappingProxyType({**ledger.promised, run_id: promise}))


def release(ledger: Ledger, run_id: str) -> Ledger:
    """The ledger without the run's promise; the same ledger where it has none."""
    if run_id not in ledger.promised:
        return ledger
    rest = {run: promise for run, promise in ledger.promised.items() if run != run_id}
    return replace(ledger, promised=MappingProxyType(rest))


def check(tiers: Mapping[str, Tier], host: Capacity, tier: str) -> None:
    """Raises RefusedError for a tier that is not there, or that the whole node cannot satisfy."""
    wanted = tiers.get(tier)
    if wanted is None:
        known = ", ".join(sorted(tiers))
        raise RefusedError(
            Refusal.UNKNOWN_TIER,
            f"There is no tier {tier!r} on this node; it has: {known}.",
            pointer="/tier",
        )
    if not _fits(_Amount.of(wanted.capacity), _Amount.of(host)):
        raise RefusedError(
            Refusal.TOO_LARGE_FOR_NODE,
            f"Tier {tier!r} asks for {_in_words(wanted.capacity)};"
            f" the whole node has {_in_words(host)}.",
            pointer="/tier",
        )


def next_admissible(queue: Iterable[Waiting], ledger: Ledger) -> Sequence[str]:
    """The runs of the queue that may begin now, all at once, in the queue's order.

    - A run that has to wait holds up every later run of its own tier.
    - A run that waits for capacity keeps for itself what is free of its need. Later runs of other
      tiers may use the rest only, so that what it waits for can only grow.
    - A run that waits for a slot of its tier keeps nothing: whoever frees the slot frees what it
      needs, and it is asked before all later ones.
    - A run that could not begin on an empty node (its tier is gone, or has become too large) holds
      up nobody. `check` tells why.
    """
    host = _Amount.of(ledger.host)
    free = _Amount.of(ledger.free())
    running = Counter(ledger.runs_by_tier())
    held_up: set[str] = set()
    admitted: list[str] = []
    for waiting in queue:
        if len(held_up) == len(ledger.tiers):
            break
        tier = ledger.tiers.get(waiting.tier)
        if tier is None or waiting.tier in held_up:
            continue
        need = _Amount.of(tier.capacity)
        if running[tier.name] >= tier.max_runs or not _fits(need, host):
            held_up.add(tier.name)
        elif _fits(need, free):
            free = _less(free, need)
            running[tier.name] += 1
            admitted.append(waiting.run_id)
        else:
            free = _less(free, need)
            held_up.add(tier.name)
    return admitted


@dataclass(frozen=True, slots=True)
class _Amount:
    """A capacity in whole numbers, which add and compare exactly."""

    nano_cpus: int
    memory_bytes: int
    gpus: int

    @classmethod
    def of(cls, capacity: Capacity) -> "_Amount":
        return cls(_nano(capacity.cpus), capacity.memory_bytes, capacity.gpus)


def _nano(cpus: float) -> int:
    return round(cpus * _NANO)


def _fits(need: _Amount, free: _Amount) -> bool:
    return (
        need.nano_cpus <= free.nano_cpus
        and need.memory_bytes <= free.memory_bytes
        and need.gpus <= free.gpus
    )


def _less(free: _Amount, taken: _Amount) -> _Amount:
    return _Amount(
        max(0, free.nano_cpus - taken.nano_cpus),
        max(0, free.memory_bytes - taken.memory_bytes),
        max(0, free.gpus - taken.gpus),
    )


def _in_words(capacity: Capacity) -> str:
    return (
        f"{capacity.cpus:g} cpus, {capacity.memory_bytes / _GIB:.4g} GiB of memory"
        f" and {capacity.gpus} gpus"
    )

"""Admission: never more than there is, in order, and everybody's turn comes."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.core.admission import (
    Capacity,
    Ledger,
    Promise,
    Tier,
    Waiting,
    check,
    next_admissible,
    release,
    reserve,
)
from executord.core.refusals import Refusal, RefusedError

GIB = 1 << 30
HOST = Capacity(cpus=4, memory_bytes=16 * GIB, gpus=1)
SMALL = Tier(name="small", cpus=1, memory_bytes=GIB, max_runs=10)
WIDE = Tier(name="wide", cpus=4, memory_bytes=GIB, max_runs=10)
GPU = Tier(name="gpu", cpus=1, memory_bytes=GIB, gpus=1, max_runs=10)
SINGLE = Tier(name="single", cpus=1, memory_bytes=GIB, max_runs=1)
TIERS = {tier.name: tier for tier in (SMALL, WIDE, GPU, SINGLE)}


def ledger_with(*promises: tuple[str, str]) -> Ledger:
    ledger = Ledger(host=HOST, tiers=TIERS)
    for run_id, tier in promises:
        ledger = reserve(ledger, run_id, tier)
    return ledger


def queue(*tiers: str) -> list[Waiting]:
    """Runs named by their place and tier: small.0, wide.1, …"""
    return [Waiting(run_id=f"{tier}.{n}", tier=tier) for n, tier in enumerate(tiers)]


def admitted(waiting: Sequence[Waiting], ledger: Ledger) -> list[str]:
    return list(next_admissible(waiting, ledger))


def test_as_many_runs_begin_as_there_are_cpus() -> None:
    waiting = queue(*["small"] * 6)
    assert admitted(waiting, ledger_with()) == ["small.0", "small.1", "small.2", "small.3"]


def test_the_count_of_a_tier_is_never_exceeded() -> None:
    assert admitted(queue("single", "single"), ledger_with()) == ["single.0"]
    assert admitted(queue("single"), ledger_with(("a", "single"))) == []


def test_a_run_that_waits_for_its_tiers_slot_lets_other_tiers_pass() -> None:
    waiting = queue("single", "small", "single")
    assert admitted(waiting, ledger_with(("a", "single"))) == ["small.1"]


def test_a_run_that_waits_for_cpus_is_not_overtaken_by_those_who_would_take_them() -> None:
    waiting = queue("wide", "small", "small")
    assert admitted(waiting, ledger_with(("a", "small"))) == []


def test_a_run_that_waits_for_a_gpu_leaves_the_cpus_it_does_not_need() -> None:
    waiting = queue("gpu", "small", "small", "small", "small")
    assert admitted(waiting, ledger_with(("a", "gpu"))) == ["small.1", "small.2"]


def test_a_run_whose_tier_outgrew_the_node_holds_up_nobody() -> None:
    tiers = {"huge": Tier(name="huge", cpus=64, memory_bytes=GIB, max_runs=1), "small": SMALL}
    ledger = Ledger(host=HOST, tiers=tiers)
    assert admitted(queue("huge", "gone", "small"), ledger) == ["small.2"]


def test_ten_tenths_of_a_cpu_are_one_cpu() -> None:
    tenth = Tier(name="tenth", cpus=0.1, memory_bytes=1, max_runs=100)
    ledger = Ledger(host=Capacity(cpus=1, memory_bytes=GIB), tiers={"tenth": tenth})
    assert len(admitted(queue(*["tenth"] * 12), ledger)) == 10
    for n in range(10):
        ledger = reserve(ledger, f"r{n}", "tenth")
    assert ledger.free().cpus == 0


def test_recovered_runs_that_hold_more_than_the_node_has_leave_nothing_free() -> None:
    ledger = reserve(ledger_with(), "old", "gone", holds=Capacity(cpus=64, memory_bytes=1))
    assert ledger.free() == Capacity(cpus=0, memory_bytes=16 * GIB - 1, gpus=1)
    assert admitted(queue("small"), ledger) == []
    assert admitted(queue("small"), release(ledger, "old")) == ["small.0"]


def test_a_slot_is_reserved_once_and_for_a_known_tier_only() -> None:
    with pytest.raises(ValueError, match="run a has a slot already"):
        reserve(ledger_with(("a", "small")), "a", "small")
    with pytest.raises(ValueError, match="no tier 'gone'"):
        reserve(ledger_with(), "a", "gone")


def test_releasing_a_run_without_a_slot_changes_nothing() -> None:
    ledger = ledger_with(("a", "small"))
    assert release(ledger, "b") is ledger


def test_an_old_ledger_is_not_changed_by_what_follows_from_it() -> None:
    before = ledger_with(("a", "small"))
    after = release(reserve(before, "b", "gpu"), "a")
    assert before.promised == {"a": Promise(tier="small", capacity=SMALL.capacity)}
    assert list(after.promised) == ["b"]


def test_an_unknown_tier_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RefusedError, match="it has: gpu, single, small, wide") as caught:
        check(TIERS, HOST, "smal")
    assert caught.value.code is Refusal.UNKNOWN_TIER
    assert caught.value.pointer == "/tier"


@pytest.mark.parametrize(
    ("tier", "says"),
    [
        (Tier(name="t", cpus=4.5, memory_bytes=GIB, max_runs=1), "4.5 cpus"),
        (Tier(name="t", cpus=1, memory_bytes=17 * GIB, max_runs=1), "17 GiB"),
        (Tier(name="t", cpus=1, memory_bytes=GIB, gpus=2, max_runs=1), "2 gpus"),
    ],
)
def test_a_tier_too_large_for_the_node_is_refused_with_the_numbers(tier: Tier, says: str) -> None:
    with pytest.raises(RefusedError, match=says) as caught:
        check({"t": tier}, HOST, "t")
    assert caught.value.code is Refusal.TOO_LARGE_FOR_NODE
    assert "4 cpus, 16 GiB of memory and 1 gpus" in caught.value.detail


def test_a_tier_of_exactly_the_nodes_size_is_allowed() -> None:
    whole = Tier(name="all", cpus=4, memory_bytes=16 * GIB, gpus=1, max_runs=1)
    check({"all": whole}, HOST, "all")


# -- Properties ------------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")
hosts = st.builds(
    Capacity,
    cpus=st.integers(1, 8),
    memory_bytes=st.integers(1, 8),
    gpus=st.integers(0, 2),
)
sizes = st.tuples(
    st.sampled_from((0.1, 0.3, 1.0, 1.5, 3.0, 8.0)),
    st.integers(1, 9),
    st.integers(0, 2),
    st.integers(1, 3),
)


@st.composite
def nodes(draw: st.DrawFn) -> tuple[Ledger, list[Waiting]]:
    """A node with some tiers, perhaps too large ones, and a queue of runs for them."""
    tiers = {}
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        cpus, memory, gpus, max_runs = draw(sizes)
        tiers[name] = Tier(name=name, cpus=cpus, memory_bytes=memory, gpus=gpus, max_runs=max_runs)
    chosen = draw(st.lists(st.sampled_from(sorted(tiers)), max_size=25))
    return Ledger(host=draw(hosts), tiers=tiers), queue(*chosen)


def can_ever_begin(ledger: Ledger, tier: str) -> bool:
    try:
        check(ledger.tiers, ledger.host, tier)
    except RefusedError:
        return False
    return True


def admit(ledger: Ledger, waiting: list[Waiting]) -> tuple[Ledger, list[Waiting], list[str]]:
    begun = admitted(waiting, ledger)
    tier_of = {w.run_id: w.tier for w in waiting}
    for run_id in begun:
        ledger = reserve(ledger, run_id, tier_of[run_id])
    return ledger, [w for w in waiting if w.run_id not in begun], begun


def assert_not_over_promised(ledger: Ledger) -> None:
    total = ledger.total_promised()
    assert total.cpus <= ledger.host.cpus
    assert total.memory_bytes <= ledger.host.memory_bytes
    assert total.gpus <= ledger.host.gpus
    for tier, count in ledger.runs_by_tier().items():
        assert count <= ledger.tiers[tier].max_runs


@given(nodes(), st.data())
def test_every_run_that_can_begin_begins_in_order_and_within_capacity(
    node: tuple[Ledger, list[Waiting]], data: st.DataObject
) -> None:
    ledger, waiting = node
    expected = {w.run_id for w in waiting if can_ever_begin(ledger, w.tier)}
    order_within = {name: [w.run_id for w in waiting if w.tier == name] for name in ledger.tiers}
    begun: list[str] = []
    while True:
        ledger, waiting, now = admit(ledger, waiting)
        begun += now
        assert_not_over_promised(ledger)
        if not ledger.promised:
            break
        ledger = release(ledger, data.draw(st.sampled_from(sorted(ledger.promised))))
    assert set(begun) == expected
    assert len(begun) == len(set(begun))
    for name, order in order_within.items():
        assert [run for run in begun if run in order] == (
            order if can_ever_begin(ledger, name) else []
        )


@given(nodes(), st.data())
def test_the_first_run_that_waits_begins_before_the_promises_made_after_it_end(
    node: tuple[Ledger, list[Waiting]], data: st.DataObject
) -> None:
    """Nobody starves: when those that hold a slot now have ended, the head has begun, however
    many others arrive and stay for ever in the meantime.
    """
    ledger, waiting = node
    waiting = [w for w in waiting if can_ever_begin(ledger, w.tier)]
    ledger, waiting, _ = admit(ledger, waiting)
    if not waiting:
        return
    head = waiting[0]
    for old in data.draw(st.permutations(sorted(ledger.promised))):
        feasible = sorted(t for t in ledger.tiers if can_ever_begin(ledger, t))
        late = data.draw(st.lists(st.sampled_from(feasible), max_size=4))
        waiting += [Waiting(run_id=f"late.{old}.{n}", tier=tier) for n, tier in enumerate(late)]
        ledger, waiting, _ = admit(release(ledger, old), waiting)
    assert head.run_id in ledger.promised

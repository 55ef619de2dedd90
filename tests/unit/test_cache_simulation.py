"""Recorded uses, and what caches of other sizes would have made of them."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.core.cache_simulation import RANKS, Outcome, Trace, bound, simulate
from executord.core.cache_trace import (
    MOST_PARTS,
    BadTraceError,
    TracePart,
    Use,
    decode,
    encode,
    sample,
)
from executord.core.fetch_cost import FetchCost
from executord.files.cache.trace import TraceLog
from tests.bench.cache_traces import GENERATORS

BLOCK = 4096


def use(time: float, tree: str, *parts: int, blocks: int = 1, own: int = 0) -> Use:
    return Use(
        time=time,
        tree=tree,
        files=len(parts),
        bytes=len(parts) * blocks * BLOCK,
        own_bytes=own,
        own_inodes=1,
        own_seconds=1.0,
        seconds_per_file=10.0,
        seconds_per_byte=0.0,
        parts=tuple(TracePart(part, blocks) for part in parts),
    )


def hits(outcome: Outcome) -> tuple[float, float, float]:
    return outcome.run_hits, outcome.file_hits, outcome.seconds


# -- the record ----------------------------------------------------------------------------------


def test_what_is_recorded_is_read_back() -> None:
    told = use(1.5, "sha256:x", 1, 2**64 - 1, blocks=7)
    assert decode(encode(told)) == told


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        "{}",
        "{" * 5000,
        '{"time":"x"}',
        encode(use(1, "a", 1)).replace('"parts":"', '"parts":"!'),
    ],
)
def test_what_is_no_use_is_refused(line: str) -> None:
    with pytest.raises(BadTraceError):
        decode(line)


def test_negative_figures_are_refused() -> None:
    broken = {**json.loads(encode(use(1, "a"))), "bytes": -1}
    with pytest.raises(BadTraceError):
        decode(json.dumps(broken))


def test_few_blobs_are_told_exactly() -> None:
    blobs = [TracePart(number, 3) for number in range(MOST_PARTS)]
    assert sample(blobs) == (tuple(blobs), 1)


def test_a_sample_is_bounded_and_keeps_the_sums() -> None:
    rng = random.Random(1)
    blobs = [TracePart(rng.getrandbits(64), rng.randint(1, 100)) for _ in range(50_000)]
    kept, one_in = sample(blobs)
    assert len(kept) <= MOST_PARTS
    told = sum(max(part.blocks, one_in) for part in kept)
    assert told == pytest.approx(sum(part.blocks for part in blobs), rel=0.15)


def test_trees_that_share_blobs_share_them_in_their_samples() -> None:
    rng = random.Random(2)
    first = [TracePart(rng.getrandbits(64), rng.randint(1, 9)) for _ in range(20_000)]
    second = first[:19_000] + [TracePart(rng.getrandbits(64), 5) for _ in range(1000)]
    one, other = set(sample(first)[0]), set(sample(second)[0])
    assert len(one & other) / len(one) == pytest.approx(0.95, abs=0.05)


def test_the_log_is_bounded_and_each_file_tells_its_trees(tmp_path: Path) -> None:
    log = TraceLog(tmp_path, most_bytes=20_000)
    for number in range(400):
        tree = f"tree{number % 3}"
        parts = () if log.has_told(tree) else (1, 2, 3)
        log.add([use(number, tree, *parts)])
    sizes = [path.stat().st_size for path in (tmp_path / "trace-v1").iterdir()]
    assert len(sizes) == 2
    assert max(sizes) < 21_000
    read = list(log.read())
    assert [each.time for each in read] == sorted(each.time for each in read)
    assert read[-1].time == 399
    assert all(use.parts for use in {each.tree: each for each in reversed(read)}.values())


def test_half_a_line_from_a_power_cut_spoils_only_itself(tmp_path: Path) -> None:
    log = TraceLog(tmp_path)
    log.add([use(1, "a", 1)])
    with (tmp_path / "trace-v1/uses.jsonl").open("a") as file:
        file.write('{"time":2,"tr')
    TraceLog(tmp_path).add([use(3, "b", 2)])
    assert [each.tree for each in log.read()] == ["a", "b"]


# -- what fetching costs -------------------------------------------------------------------------


@given(
    st.floats(1e-6, 1e-2),
    st.floats(1e-10, 1e-6),
    st.lists(st.tuples(st.integers(300, 10_000), st.integers(0, 10**9)), min_size=20, max_size=60),
)
def test_what_fetching_takes_is_learnt(
    per_file: float, per_byte: float, fetches: list[tuple[int, int]]
) -> None:
    cost = FetchCost()
    for files, size in fetches * 20:
        cost.observe(files=files, bytes_=size, seconds=files * per_file + size * per_byte)
    found_file, found_byte = cost.per_file_and_byte
    assert found_file >= 0
    assert found_byte >= 0
    truth = sum(files * per_file + size * per_byte for files, size in fetches)
    told = sum(files * found_file + size * found_byte for files, size in fetches)
    assert told == pytest.approx(truth, rel=0.5)


def test_before_the_first_fetch_there_is_a_guess() -> None:
    per_file, per_byte = FetchCost().per_file_and_byte
    assert per_file == pytest.approx(1 / 5000)
    assert per_byte == pytest.approx(1 / 200e6)


# -- the replay ----------------------------------------------------------------------------------


def test_a_cache_that_holds_all_misses_each_tree_once_and_each_blob_once() -> None:
    trace = Trace([use(1, "a", 1, 2), use(2, "b", 2, 3), use(3, "a"), use(4, "b")])
    for policy in RANKS:
        outcome = simulate(trace, size_bytes=1 << 30, policy=policy)
        assert hits(outcome) == (2, 5, 3 * 10 + 2 * 1)
        assert outcome.evictions == 0


def test_a_cache_too_small_for_two_trees_evicts_by_turns() -> None:
    uses = [use(number, "ab"[number % 2], 10 + number % 2, own=BLOCK) for number in range(10)]
    outcome = simulate(Trace(uses), size_bytes=3 * BLOCK, policy="lru", low=0.7, high=1.0)
    assert outcome.run_hits == 0
    assert outcome.evictions == 9


def test_blobs_in_the_same_trees_are_one_class() -> None:
    trace = Trace([use(1, "a", *range(100)), use(2, "b", *range(50, 150))])
    assert sorted(each.files for each in trace.classes) == [50, 50, 50]
    assert trace.bytes == 150 * BLOCK


def test_the_bound_is_what_is_not_paid_for_once() -> None:
    trace = Trace([use(1, "a", 1, own=BLOCK), use(2, "a"), use(3, "a")])
    assert hits(bound(trace, size_bytes=1 << 20)) == (2, 2, 11)
    assert bound(trace, size_bytes=0).seconds == 33


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    trees = {name: draw(st.lists(st.integers(0, 12), max_size=6, unique=True)) for name in "abcdef"}
    order = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40))
    own = draw(st.integers(0, 3)) * BLOCK
    return Trace([use(number, tree, *trees[tree], own=own) for number, tree in enumerate(order)])


@given(traces(), st.integers(1, 20))
def test_nothing_beats_the_bound(trace: Trace, blocks: int) -> None:
    """With the watermarks at 1, the cache holds at most its size between two uses, plus the tree
    that is in use.
    """
    largest = max(
        (tree.own.bytes + sum(trace.classes[part].bytes for part in tree.parts))
        for tree in trace.trees
    )
    size = blocks * BLOCK
    limit = bound(trace, size_bytes=size + largest)
    for policy in RANKS:
        outcome = simulate(trace, size_bytes=size, policy=policy, low=1.0, high=1.0)
        assert outcome.run_hits <= limit.run_hits + 1e-6
        assert outcome.file_hits <= limit.file_hits + 1e-6
        assert outcome.seconds >= limit.seconds - 1e-6


@pytest.mark.parametrize("name", GENERATORS)
def test_ours_costs_no_more_than_lru_on_any_kind_of_trace(name: str) -> None:
    trace = Trace(GENERATORS[name](7))
    size = int(trace.bytes * 0.2)
    lru = simulate(trace, size_bytes=size, policy="lru")
    ours = simulate(trace, size_bytes=size, policy="worth")
    assert ours.seconds <= lru.seconds * 1.01
    assert ours.run_hits >= lru.run_hits * 0.99

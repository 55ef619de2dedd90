import json
import statistics

from hypothesis import given
from hypothesis import strategies as st

from executord.core.run import UsageSummary
from executord.ports import UsageSample
from executord.usage.counters import Reading
from executord.usage.series import Series, samples_from_json, summary_from_json, to_json
from executord.usage.watched import Look, Watched

SUMMARY = UsageSummary(
    samples=3,
    seconds=2.5,
    cpu_seconds=1.25,
    cpu_cores_average=0.5,
    cpu_cores_peak=0.9,
    memory_peak_bytes=100,
    memory_average_bytes=50,
    oom_kills=None,
)


def sample(second: float, cores: float = 0.5, memory: int = 100) -> UsageSample:
    return UsageSample(
        time=1000.0 + second, cpu_seconds=second / 2, cpu_cores=cores, memory_bytes=memory
    )


def look(second: float, **values: float | None) -> Look:
    given_values = {"cpu_seconds": second / 2, "memory_bytes": 100, **values}
    reading = Reading(**given_values)  # type: ignore[arg-type]
    return Look(1000.0 + second, 50.0 + second, reading, None)


@given(st.integers(1, 5000), st.sampled_from([0.25, 1.0, 7.0]))
def test_a_series_stays_small_and_keeps_mean_least_and_most(count: int, width: float) -> None:
    series = Series(width_seconds=width)
    cores = [(number * 7 % 11) / 10 for number in range(count)]
    for number, each in enumerate(cores):
        series.add(sample(number * width, each, memory=number))
    assert len(series.buckets) <= 120
    assert sum(bucket.samples for bucket in series.buckets) == count
    mean = sum(bucket.cores_sum for bucket in series.buckets) / count
    assert abs(mean - statistics.fmean(cores)) < 1e-6
    assert max(bucket.cores_most for bucket in series.buckets) == max(cores)
    assert min(bucket.memory_least for bucket in series.buckets) == 0
    assert series.buckets[-1].last.time == 1000.0 + (count - 1) * width
    times = [bucket.last.time for bucket in series.buckets]
    assert times == sorted(set(times))


def test_a_record_comes_back_from_json() -> None:
    series = Series(width_seconds=1)
    for second in range(10):
        series.add(sample(second, cores=second / 10, memory=second))
    kept = json.loads(json.dumps(to_json(series, SUMMARY)))
    assert list(samples_from_json(kept)) == series.samples()
    assert summary_from_json(kept) == SUMMARY


def test_a_day_is_kept_in_a_few_kilobytes() -> None:
    watched = Watched(None, width_seconds=1)
    for second in range(86_400):
        watched.series.add(sample(second, cores=0.123456789, memory=123_456_789))
    assert len(json.dumps(to_json(watched.series, SUMMARY))) < 16_000


def test_a_record_of_another_version_gives_nothing() -> None:
    later = {"version": 99, "columns": ["time"], "rows": [[1]]}
    odds: tuple[object, ...] = (None, [], {}, later, "text")
    for odd in odds:
        assert samples_from_json(odd) == ()
        assert summary_from_json(odd) is None


def test_columns_that_a_later_version_adds_are_left_out() -> None:
    kept = {
        "version": 1,
        "columns": ["time", "cpu_seconds", "new_thing"],
        "rows": [[1.0, 2.0, 3.0], [None, 1.0, 1.0]],
    }
    assert list(samples_from_json(kept)) == [UsageSample(time=1.0, cpu_seconds=2.0)]


def test_cores_are_counted_between_two_looks() -> None:
    watched = Watched(None, width_seconds=1)
    watched.add(look(0))
    watched.add(look(1, cpu_seconds=0.75))
    watched.add(look(3, cpu_seconds=1.75))
    assert [s.cpu_cores for s in watched.samples(0)] == [0.0, 0.75, 0.5]


def test_two_looks_close_together_do_not_make_a_peak() -> None:
    watched = Watched(None, width_seconds=1)
    watched.add(look(0))
    watched.add(look(1, cpu_seconds=0.5))
    watched.add(look(1.01, cpu_seconds=0.6))
    summary = watched.summarize()
    assert summary is not None
    assert summary.cpu_cores_peak == 0.5


def test_what_went_with_the_container_keeps_its_last_value() -> None:
    watched = Watched(None, width_seconds=1)
    watched.add(look(0, oom_kills=1, written_bytes=500, memory_limit_bytes=77))
    watched.note_end(look(1, written_bytes=200, memory_bytes=0))
    summary = watched.summarize()
    assert summary is not None
    assert (summary.oom_kills, summary.written_bytes) == (1, 500)
    assert summary.memory_average_bytes == 100


def test_that_nothing_was_killed_is_only_said_after_a_look_at_the_end() -> None:
    for at_end, said in ((0, 0), (None, None), (2, 2)):
        watched = Watched(None, width_seconds=1)
        watched.add(look(0, oom_kills=0))
        watched.note_end(look(1, oom_kills=at_end))
        watched.note_end(look(2, oom_kills=None))
        summary = watched.summarize()
        assert summary is not None
        assert summary.oom_kills == said


def test_samples_of_a_long_run_reach_back_to_its_beginning() -> None:
    watched = Watched(None, width_seconds=1)
    for second in range(2000):
        watched.add(look(second))
    samples = watched.samples(0)
    times = [each.time for each in samples]
    assert times == sorted(set(times))
    assert times[0] < 1100
    assert len([t for t in times if t >= 2400.0]) == 600
    assert [each.time for each in watched.samples(2997)] == [2998.0, 2999.0]


def test_nothing_seen_is_no_summary() -> None:
    assert Watched(None, width_seconds=1).summarize() is None

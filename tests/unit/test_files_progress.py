"""How quickly it goes, and how long it will take."""

from typing import TYPE_CHECKING

from executord.cli.describe import progress_words
from executord.files.progress import Counter, Pace

if TYPE_CHECKING:
    from executord.ports import Progress


def test_nobody_can_tell_at_once() -> None:
    pace = Pace()
    assert pace.bytes_per_second is None
    pace.note(100.0, 0, 0)
    pace.note(100.5, 5, 5000)
    assert pace.bytes_per_second is None
    assert pace.seconds_left(10, 10_000) is None


def test_the_rate_is_of_the_last_seconds_and_the_rest_takes_as_long_at_it() -> None:
    pace = Pace()
    for second in range(60):
        pace.note(float(second), second, second * 1000)
    for second in range(60, 70):
        pace.note(float(second), 60, 60_000 + (second - 60) * 100)
    assert pace.bytes_per_second == 100
    assert pace.seconds_left(0, 70_900) == 100
    assert pace.seconds_left(0, 0) is None


def test_without_bytes_files_tell_how_long() -> None:
    pace = Pace()
    pace.note(0.0, 0, 0)
    pace.note(2.0, 10, 0)
    assert pace.seconds_left(30, 0) == 4.0


def test_what_stands_still_has_no_end() -> None:
    pace = Pace()
    pace.note(0.0, 5, 100)
    pace.note(2.0, 5, 100)
    assert pace.bytes_per_second == 0
    assert pace.seconds_left(10, 200) is None


def test_more_work_is_part_of_the_totals() -> None:
    seen: list[Progress] = []
    counter = Counter("sending", seen.append)
    counter.expect_more(3, 300)
    counter.expect_more(1, 100)
    counter.done()
    assert (seen[-1].files_total, seen[-1].bytes_total) == (4, 400)


def test_a_person_reads_rate_and_time_left() -> None:
    stage = {"what": "fetching files", "bytes_done": 1 << 20, "bytes_total": 3 << 20}
    pace = {"bytes_per_second": float(1 << 20), "seconds_left": 2.0}
    assert progress_words({**stage, **pace}) == (
        "fetching files, 1.0 MiB of 3.0 MiB, 1.0 MiB/s, 2.0 s left"
    )
    assert progress_words(stage) == "fetching files, 1.0 MiB of 3.0 MiB"

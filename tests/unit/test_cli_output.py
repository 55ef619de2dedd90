import pytest

from executord.cli import units
from executord.cli.output import Output, styled


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (200 << 20, "200 MiB"),
        (3 << 60, "3072 PiB"),
    ],
)
def test_sizes_are_read_in_powers_of_1024(count: int | None, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.012, "12 ms"),
        (0.9999, "1.0 s"),
        (59.9, "59.9 s"),
        (59.96, "1m 0s"),
        (75, "1m 15s"),
        (3 * 3600 + 5 * 60 + 7, "3h 5m"),
        (2 * 86400 + 3600, "2d 1h"),
        (-2, "-2.0 s"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text


def test_times_come_as_text_or_as_numbers() -> None:
    assert units.unix_time("1970-01-01T00:01:00.500000Z") == 60.5
    assert units.unix_time(60.5) == 60.5
    assert units.unix_time("yesterday") is None
    assert units.unix_time(None) is None


def test_a_time_that_no_calendar_has_is_shown_as_unknown() -> None:
    assert units.moment(1e20) == "-"


def test_machine_times_are_utc_with_microseconds() -> None:
    assert units.utc(60.25) == "1970-01-01T00:01:00.250000Z"


def test_how_long_ago_is_whole_seconds() -> None:
    assert units.ago(100.0, now=100.5) == "now"
    assert units.ago(100.0, now=165.9) == "1m 6s ago"
    assert units.ago(100.0, now=103.9) == "3s ago"
    assert units.ago(200.0, now=100.0) == "now"


def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("name", "size"), [("a", 5), ("longer", 10)], right=("size",))
    assert capsys.readouterr().out == "NAME    SIZE\na          5\nlonger    10\n"


def test_wide_characters_take_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("name", "x"), [("世界", 1), ("abcd", 2)])
    assert capsys.readouterr().out.splitlines()[1:] == ["世界  1", "abcd  2"]


def test_a_cell_cannot_break_out_of_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("name",), [("a\nb\x1b[2J",)])
    assert capsys.readouterr().out == "NAME\na^Jb^[[2J\n"


def test_nothing_is_coloured_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.line(output.state("Failed"))
    output.warn("careful")
    captured = capsys.readouterr()
    assert captured.out == "Failed\n"
    assert captured.err == "careful\n"


def test_quiet_leaves_out_notes_but_not_errors(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    output.note("by the way")
    output.error("it broke", "mend it")
    assert capsys.readouterr().err == "executorctl: it broke\n  mend it\n"


def test_empty_facts_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    Output().facts([("Name", "x"), ("Nothing", ""), ("Longer", 0)])
    assert capsys.readouterr().out == "Name:   x\nLonger: 0\n"


def test_an_unknown_style_leaves_the_text_alone() -> None:
    assert styled("text", "sparkling") == "text"

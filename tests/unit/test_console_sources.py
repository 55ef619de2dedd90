import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executord.console.reading import ConsoleReader
from executord.console.records import Cursor
from executord.console.sealed import seal
from executord.console.segments import Segments
from executord.console.sources import JsonLogSource, Missing, Piece
from executord.console.tail import Tail
from executord.console.times import parse_time
from tests.fakes.consoles import everything, masked_by_hand, text_of
from tests.fakes.engine_log import EngineLog, entry


class Kept:
    """A console that is kept from a log, and can be taken up again as after a restart."""

    def __init__(self, root: Path, *, limit_bytes: int = 1 << 20) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.secrets: tuple[bytes, ...] = ()
        self.log = EngineLog(root / "c-json.log")
        self.begin()

    def begin(self) -> None:
        self.segments = Segments(self.root / "console", self.limit_bytes)
        self.segments.load()
        self.tail = Tail(
            source=JsonLogSource(self.log.path),
            segments=self.segments,
            patterns=lambda: self.secrets,
            now=lambda: 1_000.0,
        )

    def restart(self, *, torn_bytes: int = 0) -> None:
        """As after `kill -9`, perhaps with the end of the last file not written."""
        self.close()
        for path in sorted((self.root / "console").glob("*.seg"))[-1:]:
            os.truncate(path, max(0, path.stat().st_size - torn_bytes))
        self.begin()

    def follow(self) -> None:
        while self.tail.step():
            pass

    def finish(self) -> None:
        self.follow()
        self.tail.finish()

    def close(self) -> None:
        self.tail.close()
        self.segments.close()

    def text(self, stream: str | None = None) -> bytes:
        records = everything(self.segments)
        return text_of([r for r in records if stream in (None, r.stream)])

    def gaps(self) -> int:
        return sum(record.stream == "gap" for record in everything(self.segments))


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    console = Kept(tmp_path)
    yield console
    console.close()
    console.log.close()


def test_times_are_read_to_the_nanosecond() -> None:
    assert parse_time("2026-11-22T19:21:48.43584769Z") == 1_795_375_308_435_847_690
    assert parse_time("1970-01-01T00:00:01Z") == 1_000_000_000


@pytest.mark.parametrize(
    "text",
    ["", "Z", "now", "2026-11-22T19:21:48", "2026-11-22T19:21:48.1234567891Z", "9999-01-01T00:00Z"],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def test_streams_times_and_order_come_from_the_log(kept: Kept) -> None:
    kept.log.write("one\n", time_ns=1_000_000_000)
    kept.log.write("oops\n", "stderr", time_ns=1_500_000_000)
    kept.log.write("two\n", time_ns=2_000_000_000)
    kept.finish()
    shown = [(r.offset, r.time, r.stream, r.data) for r in everything(kept.segments)]
    assert shown == [
        (0, 1.0, "stdout", b"one\n"),
        (4, 1.5, "stderr", b"oops\n"),
        (9, 2.0, "stdout", b"two\n"),
    ]


def test_lines_within_a_few_milliseconds_share_a_record(kept: Kept) -> None:
    for number in range(10):
        kept.log.write(f"{number}\n", time_ns=1_000_000_000 + number * 1_000_000)
    kept.finish()
    assert [r.data for r in everything(kept.segments)] == [b"0\n1\n2\n3\n4\n", b"5\n6\n7\n8\n9\n"]


def test_a_long_line_that_the_engine_split_is_whole_again(kept: Kept) -> None:
    line = "é" * 50_000 + "\n"
    kept.log.write(line)
    kept.finish()
    assert kept.text() == line.encode()


def test_control_bytes_and_nul_come_through(kept: Kept) -> None:
    text = "".join(map(chr, range(128))) + "\u2028\ufffd\n"
    kept.log.write_raw(entry("stdout", text, 1))
    kept.finish()
    assert kept.text() == text.encode()


def test_a_line_that_is_still_being_written_is_waited_for(kept: Kept) -> None:
    line = entry("stdout", "late\n", 1)
    kept.log.write_raw(line[:20])
    kept.follow()
    assert kept.text() == b""
    kept.log.write_raw(line[20:])
    kept.follow()
    assert kept.text() == b"late\n"


@pytest.mark.parametrize(
    "bad",
    [
        b"{broken\n",
        b"\0\0\0\0\n",
        b"[]\n",
        b'"text"\n',
        b'{"log": 5}\n',
        b'{"log":"x","stream":"stdout","time":"never"}\n',
        b'{"log":"x","stream":"elsewhere","time":"2026-01-01T00:00:00Z"}\n',
        b'{"log":"\\ud800","stream":"stdout","time":"2026-01-01T00:00:00Z"}\n',
        b"x" * 3_000_000 + b"\n",
    ],
)
def test_a_line_that_is_no_entry_becomes_one_gap(kept: Kept, bad: bytes) -> None:
    kept.log.write("before\n")
    kept.log.write_raw(bad * 2)
    kept.log.write("after\n")
    kept.finish()
    assert kept.text() == b"before\nafter\n"
    assert kept.gaps() == 1


def test_a_torn_last_line_is_told_as_a_gap(kept: Kept) -> None:
    kept.log.write("whole\n")
    kept.log.write_raw(b'{"log":"to')
    kept.finish()
    assert kept.text() == b"whole\n"
    assert kept.gaps() == 1


def test_rotation_loses_nothing(kept: Kept) -> None:
    for number in range(20):
        kept.log.write(f"{number}a\n")
        kept.follow()
        kept.log.write(f"{number}b\n")
        kept.log.rotate()
        kept.log.write(f"{number}c\n")
    kept.finish()
    assert kept.text() == "".join(f"{n}a\n{n}b\n{n}c\n" for n in range(20)).encode()
    assert kept.gaps() == 0


def test_rotation_while_nobody_follows_loses_nothing_as_long_as_one_file_is_left(
    kept: Kept,
) -> None:
    kept.log.write("one\n")
    kept.follow()
    kept.log.write("two\n")
    kept.tail.close()
    kept.log.rotate()
    kept.log.write("three\n")
    kept.restart()
    kept.finish()
    assert kept.text() == b"one\ntwo\nthree\n"
    assert kept.gaps() == 0


def test_the_first_look_finds_what_was_rotated_before(kept: Kept) -> None:
    kept.log.write("one\n")
    kept.log.rotate()
    kept.log.write("two\n")
    kept.restart()
    kept.finish()
    assert kept.text() == b"one\ntwo\n"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_rotation_that_was_missed_is_told_as_a_gap(kept: Kept, restarted: bool) -> None:
    kept.log.write("one\n")
    kept.follow()
    for number in range(3):
        kept.log.rotate()
        kept.log.write(f"{number}\n")
    if restarted:
        kept.restart()
    kept.finish()
    assert kept.text() == b"one\n1\n2\n"
    assert kept.gaps() == 1


def test_a_log_that_was_truncated_goes_on_after_a_gap(kept: Kept) -> None:
    kept.log.write("a long first line\n")
    kept.follow()
    os.truncate(kept.log.path, 0)
    kept.follow()
    kept.log.write("new\n")
    kept.finish()
    assert kept.text() == b"a long first line\nnew\n"
    assert kept.gaps() == 1


def test_an_open_log_is_read_to_its_end_after_its_name_is_gone(kept: Kept) -> None:
    kept.log.write("one\n")
    kept.follow()
    kept.log.write("two\n")
    kept.log.remove()
    kept.finish()
    assert kept.text() == b"one\ntwo\n"
    assert kept.gaps() == 0


def test_a_log_that_vanished_while_the_daemon_was_away_is_a_gap(kept: Kept) -> None:
    kept.log.write("one\n")
    kept.follow()
    kept.log.remove()
    kept.restart()
    kept.finish()
    assert kept.text() == b"one\n"
    assert kept.gaps() == 1


def test_a_log_that_never_was_leaves_nothing(kept: Kept) -> None:
    kept.log.remove()
    kept.restart()
    kept.finish()
    assert everything(kept.segments) == []


def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(entry("stdout", "not for you\n", 1))
    (tmp_path / "link").symlink_to(elsewhere)
    source = JsonLogSource(tmp_path / "link")
    with pytest.raises(OSError):
        source.resume(Cursor())
    source.close()


def test_a_secret_over_two_entries_is_hidden_and_other_output_does_not_wait(kept: Kept) -> None:
    kept.secrets = (b"first line\nsecond line",)
    kept.log.write("key: first line\n")
    kept.log.write("progress\n", "stderr")
    kept.follow()
    assert kept.text("stdout") == b"key: "
    assert kept.text("stderr") == b"progress\n"
    kept.log.write("second line!\n")
    kept.finish()
    assert kept.text("stdout") == b"key: ***!\n"


def test_what_was_held_back_is_kept_at_the_end(kept: Kept) -> None:
    kept.secrets = (b"word\nnever comes",)
    kept.log.write("a word\n")
    kept.finish()
    assert kept.text() == b"a word\n"


words = st.sampled_from(["a\n", "b\n", "key\n", "a longer key\n", "1\n", "2\n"])
writes = st.tuples(st.sampled_from(["stdout", "stderr"]), words)
steps = st.lists(
    st.one_of(
        writes,
        st.just("follow"),
        st.just("rotate"),
        st.integers(0, 200).map(lambda torn: ("restart", torn)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=150)
@given(steps, st.booleans())
def test_however_often_it_is_killed_every_byte_is_kept_once(
    tmp_path_factory: pytest.TempPathFactory, script: list[object], hiding: bool
) -> None:
    kept = Kept(tmp_path_factory.mktemp("console"))
    kept.secrets = (b"key\n1\n2", b"a\nb\na") if hiding else ()
    written = {"stdout": b"", "stderr": b""}
    rotated = False
    for number, step in enumerate(script):
        match step:
            case "follow":
                kept.follow()
            case "rotate" if not rotated:
                kept.log.rotate()
                rotated = True
            case ("restart", int(torn)):
                kept.restart(torn_bytes=torn)
            case (str(stream), str(text)):
                kept.log.write(text, stream, time_ns=number * 10_000_000)
                written[stream] += text.encode()
    kept.finish()
    try:
        for stream, raw in written.items():
            assert once(kept.text(stream)) == once(masked_by_hand(raw, kept.secrets))
        assert kept.gaps() == 0
    finally:
        kept.close()
        kept.log.close()


def once(text: bytes) -> bytes:
    """Two secrets that touch are one mask, but for a restart just between them."""
    return text.replace(b"******", b"***")


def test_output_after_a_rotation_is_kept_also_where_the_old_log_was_kept_to_its_end(
    kept: Kept,
) -> None:
    kept.secrets = (b"a\nb\na",)
    kept.log.write("a\n")
    kept.log.write("a\n", time_ns=10_000_000)
    kept.follow()
    kept.log.rotate()
    kept.log.write("new\n", "stderr", time_ns=20_000_000)
    kept.restart(torn_bytes=0)
    kept.finish()
    assert kept.text("stderr") == b"new\n"
    assert kept.text("stdout") == b"a\na\n"


def test_pieces_tell_where_reading_goes_on(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "log")
    log.write("one\ntwo\n")
    source = JsonLogSource(log.path)
    source.resume(Cursor())
    first, second = source.read()
    assert isinstance(first, Piece)
    assert isinstance(second, Piece)
    assert first.end == second.begin
    source.resume(Cursor(first.end, first.end))
    [again] = source.read()
    assert again == second
    assert not isinstance(again, Missing)
    source.close()
    log.close()


def test_what_was_held_back_at_a_kill_is_read_again_and_nothing_else_is(kept: Kept) -> None:
    kept.secrets = (b"first line\nsecond line",)
    kept.log.write("a\n", time_ns=1)
    kept.log.write("key: first line\n", time_ns=2)
    kept.log.write("progress\n", "stderr", time_ns=10_000_000)
    kept.log.write("more\n", "stderr", time_ns=20_000_000)
    kept.follow()
    assert kept.text("stdout") == b"a\nkey: "
    kept.restart()
    kept.follow()
    assert kept.text("stdout") == b"a\nkey: "
    kept.log.write("yet more\n", "stderr", time_ns=30_000_000)
    kept.follow()
    kept.restart()
    kept.log.write("second line!\n", time_ns=40_000_000)
    kept.finish()
    assert kept.text("stdout") == b"a\nkey: ***!\n"
    assert kept.text("stderr") == b"progress\nmore\nyet more\n"
    assert kept.gaps() == 0


def test_a_gap_is_told_once_also_when_the_reader_goes_over_to_the_sealed_file(kept: Kept) -> None:
    kept.log.write("one\n")
    kept.log.write_raw(b"broken\n")
    kept.finish()
    reader = ConsoleReader(kept.segments, since=0, stream=None)
    found = reader.next_records()
    assert [record.stream for record in found] == ["stdout", "gap"]
    kept.segments.close()
    seal(kept.segments)
    assert reader.next_records() == []
    reader.close()


def test_a_stream_that_is_ahead_of_the_other_is_not_repeated_by_two_kills(kept: Kept) -> None:
    kept.secrets = (b"first line\nsecond line",)
    kept.log.write("first line\n", time_ns=1)
    for number in range(1, 4):
        kept.log.write(f"{number}\n", "stderr", time_ns=number * 10_000_000)
    kept.follow()
    kept.secrets = ()
    for _ in range(2):
        kept.restart()
        kept.follow()
    assert kept.text("stderr") == b"1\n2\n3\n"
    assert kept.text("stdout") == b"first line\n"

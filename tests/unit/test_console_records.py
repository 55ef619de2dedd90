import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.console.reading import ConsoleReader
from executord.console.records import (
    MAX_DATA_BYTES,
    Cursor,
    Frame,
    Place,
    decode,
    decode_all,
    encode,
)
from executord.console.sealed import seal
from executord.console.segments import Segments
from executord.ports import ConsoleRecord, Stream
from tests.fakes.consoles import assert_without_jumps, everything, text_of

HERE = Cursor(Place(7, 100), Place(7, 100))


def frame(data: bytes, stream: Stream = "stdout", at: int = 100) -> Frame:
    return Frame(stream, 5_000_000_000, data, Cursor(Place(7, at), Place(7, at)))


def segments_at(path: Path, limit_bytes: int = 1 << 20) -> Segments:
    segments = Segments(path, limit_bytes)
    segments.load()
    return segments


places = st.builds(
    Place, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
)


@given(st.binary(max_size=300), st.builds(Cursor, places, places), st.integers(0, 2**62))
def test_a_frame_comes_back_as_it_was(data: bytes, cursor: Cursor, time_ns: int) -> None:
    for made in (
        Frame("stderr", time_ns, data, cursor),
        Frame("gap", time_ns, b"", cursor, lost_bytes=len(data)),
    ):
        whole = encode(made)
        assert decode(whole) == (made, len(whole))


@given(st.binary(max_size=40), st.data())
def test_a_frame_that_is_cut_or_flipped_is_never_taken_for_one(
    data: bytes, draw: st.DataObject
) -> None:
    whole = encode(frame(data))
    assert decode(whole[: draw.draw(st.integers(0, len(whole) - 1))]) is None
    flipped = bytearray(whole)
    flipped[draw.draw(st.integers(0, len(whole) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    assert decode(bytes(flipped)) is None


def test_a_frame_has_a_largest_size() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode(frame(b"x" * (MAX_DATA_BYTES + 1)))


def test_a_torn_end_is_cut_and_writing_goes_on_from_the_last_whole_frame(tmp_path: Path) -> None:
    segments = segments_at(tmp_path)
    segments.write([frame(b"one\n", at=10), frame(b"two\n", at=20)])
    segments.close()
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])

    again = segments_at(tmp_path)
    assert again.end_offset == 4
    assert again.cursor.stdout.position == 10
    again.write([frame(b"2\n", at=20)])
    assert text_of(everything(again)) == b"one\n2\n"
    again.close()


def test_a_segment_whose_header_is_torn_does_not_hide_those_before_it(tmp_path: Path) -> None:
    segments = segments_at(tmp_path, limit_bytes=1 << 16)
    for number in range(100):
        segments.write([frame(b"x" * 99 + b"\n", at=number)])
    segments.close()
    paths = sorted(tmp_path.iterdir())
    assert len(paths) > 2
    paths[-1].write_bytes(b"torn")

    again = segments_at(tmp_path, limit_bytes=1 << 16)
    assert again.end_offset == int(paths[-1].stem)
    assert text_of(everything(again)) == b"".join([b"x" * 99 + b"\n"] * (again.end_offset // 100))


def test_a_bit_that_flips_in_the_middle_costs_one_segment_and_is_told(tmp_path: Path) -> None:
    segments = segments_at(tmp_path, limit_bytes=1 << 16)
    for number in range(100):
        segments.write([frame(b"%098d\n" % number, at=number)])
    path = sorted(tmp_path.iterdir())[1]
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)

    records = everything(segments)
    gaps = [record for record in records if record.stream == "gap"]
    assert len(gaps) == 1
    assert gaps[0].lost_bytes + sum(len(record.data) for record in records) == 9_900
    assert_without_jumps(records)


def test_beyond_the_limit_the_first_and_the_last_half_stay(tmp_path: Path) -> None:
    limit = 1 << 20
    segments = segments_at(tmp_path, limit_bytes=limit)
    written = [b"%099d\n" % number for number in range(60_000)]
    for begin in range(0, len(written), 50):
        segments.write([frame(data) for data in written[begin : begin + 50]])
        disk = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert disk <= limit + 2 * segments.segment_bytes
    records = everything(segments)
    assert_without_jumps(records)
    assert records[-1].end == 6_000_000
    [gap] = [record for record in records if record.stream == "gap"]
    head = sum(len(r.data) for r in records if r.offset < gap.offset)
    tail = sum(len(r.data) for r in records if r.offset > gap.offset)
    assert head > 0.3 * limit
    assert tail > 0.2 * limit
    whole = b"".join(written)
    assert text_of(records) == whole[:head] + whole[-tail:]

    inside = gap.offset + 1000
    later = everything(segments, since=inside)
    assert later[0] == ConsoleRecord(
        offset=inside, time=gap.time, stream="gap", data=b"", lost_bytes=gap.lost_bytes - 1000
    )

    segments.close()
    again = segments_at(tmp_path, limit_bytes=limit)
    assert everything(again) == records


def test_a_reader_keeps_what_it_has_open_while_segments_go(tmp_path: Path) -> None:
    segments = segments_at(tmp_path, limit_bytes=1 << 16)
    for _ in range(30):
        segments.write([frame(b"early" * 200)])
    reader = ConsoleReader(segments, since=29_500, stream=None)
    found = reader.next_records()
    for _ in range(300):
        segments.write([frame(b"later" * 200)])
    while records := reader.next_records():
        found += records
    reader.close()
    assert_without_jumps(found, since=29_500)
    assert found[-1].end == 330_000
    assert any(record.stream == "gap" for record in found)


@pytest.mark.parametrize("since", [0, 1, 4, 7, 11, 12, 13, 50])
@pytest.mark.parametrize("stream", [None, "stdout", "stderr", "build"])
def test_a_sealed_console_reads_as_the_live_one_did(
    tmp_path: Path, since: int, stream: Stream | None
) -> None:
    segments = segments_at(tmp_path)
    gap = Frame("gap", 1, b"", HERE)
    segments.write([frame(b"out\n"), frame(b"err", "stderr"), gap, frame(b"more\n"), gap])
    live = everything(segments, since, stream)
    segments.close()
    seal(segments)
    assert [path.name for path in tmp_path.iterdir()] == ["console.sealed"]
    assert everything(segments, since, stream) == live


def test_a_reader_goes_over_to_the_sealed_file_without_loss_or_repetition(tmp_path: Path) -> None:
    segments = segments_at(tmp_path, limit_bytes=1 << 17)
    written = [b"%0999d\n" % number for number in range(100)]
    segments.write([frame(data) for data in written])
    reader = ConsoleReader(segments, since=0, stream=None)
    found = reader.next_records()
    assert 0 < len(found) < 100
    segments.close()
    seal(segments)
    while records := reader.next_records():
        found += records
    reader.close()
    assert text_of(found) == b"".join(written)


def test_sealing_again_after_a_crash_in_between_finishes_it(tmp_path: Path) -> None:
    segments = segments_at(tmp_path)
    segments.write([frame(b"text\n")])
    segments.close()
    kept = [(path, path.read_bytes()) for path in tmp_path.iterdir()]
    (tmp_path / "console.sealing").write_bytes(b"half")
    seal(segments)
    for path, data in kept:
        path.write_bytes(data)
    again = segments_at(tmp_path)
    seal(again)
    assert [path.name for path in tmp_path.iterdir()] == ["console.sealed"]
    assert text_of(everything(again)) == b"text\n"


def test_a_damaged_block_of_a_sealed_console_becomes_a_gap(tmp_path: Path) -> None:
    segments = segments_at(tmp_path, limit_bytes=1 << 17)
    for number in range(60):
        segments.write([frame(b"%0999d\n" % number)])
    segments.close()
    seal(segments)
    path = tmp_path / "console.sealed"
    broken = bytearray(path.read_bytes())
    broken[100] ^= 1
    path.write_bytes(broken)
    records = everything(segments)
    assert records[0].stream == "gap"
    assert_without_jumps(records)
    assert records[-1].end == 60_000


def test_a_full_disk_leaves_what_was_kept_and_the_rest_to_be_tried_again(tmp_path: Path) -> None:
    segments = segments_at(tmp_path)
    segments.write([frame(b"kept\n", at=1)])
    frames = [frame(b"later\n", at=2)]
    assert segments._writing is not None
    writable = segments._writing.descriptor
    segments._writing.descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        segments.write(frames)
    os.close(segments._writing.descriptor)
    assert len(frames) == 1
    assert segments.cursor.stdout.position == 1
    segments._writing.descriptor = writable
    segments.write(frames)
    assert frames == []
    assert text_of(everything(segments)) == b"kept\nlater\n"
    segments.close()


def test_frames_one_after_another_are_found_until_the_first_bad_one() -> None:
    frames = [frame(b"a"), frame(b"bb", "stderr"), frame(b"ccc", "build")]
    buffer = b"".join(encode(each) for each in frames) + b"\0" * 50
    assert [found for found, _ in decode_all(buffer)] == frames

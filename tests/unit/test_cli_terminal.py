import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.cli.terminal import COLOUR_RESET, Filter, safe, safe_lines


def filtered(*pieces: bytes) -> str:
    one = Filter()
    return "".join(one.feed(piece) for piece in pieces) + one.end()


def test_ordinary_text_in_any_language_passes_unchanged() -> None:
    assert filtered("Grüße\t世界\r\n".encode()) == "Grüße\t世界\r\n"


def test_colours_pass_and_are_switched_off_at_the_end() -> None:
    assert filtered(b"\x1b[1;31mred") == f"\x1b[1;31mred{COLOUR_RESET}"


@pytest.mark.parametrize(
    ("attack", "shown"),
    [
        (b"\x1b]0;title\x07", "^[]0;title^G"),
        (b"\x1b]52;c;cm0gLXJm\x1b\\", "^[]52;c;cm0gLXJm^[\\"),
        (b"\x1bP+q\x1b\\", "^[P+q^[\\"),
        (b"\x1bc", "^[c"),
        (b"a\x08b", "a^Hb"),
        (b"\x00\x7f", "^@^?"),
        (b"\x9b31m", "\\x9b31m"),
        ("\x9b31m".encode(), "\\x9b31m"),
        (b"\xff\xfe", "\\xff\\xfe"),
    ],
)
def test_what_a_terminal_would_act_upon_is_made_visible(attack: bytes, shown: str) -> None:
    assert filtered(attack) == shown


def test_moving_the_cursor_and_erasing_is_dropped() -> None:
    assert filtered(b"10%\x1b[2K\x1b[1A\x1b[?25l\x1b[3;4H20%") == "10%20%"


def test_a_colour_that_is_split_between_two_pieces_is_still_a_colour() -> None:
    assert filtered(b"\x1b[3", b"1mred") == f"\x1b[31mred{COLOUR_RESET}"


def test_a_character_that_is_split_between_two_pieces_is_still_one() -> None:
    euro = "€".encode()
    assert filtered(euro[:1], euro[1:2], euro[2:]) == "€"


def test_an_attack_that_is_split_between_pieces_is_still_found() -> None:
    assert filtered(b"\x1b", b"]0;", b"x\x07") == "^[]0;x^G"


def test_a_sequence_that_never_ends_is_not_held_back_for_ever() -> None:
    one = Filter()
    assert "0000" in one.feed(b"\x1b[" + b"0" * 200)


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_no_bytes_at_all_get_a_control_sequence_through(pieces: list[bytes]) -> None:
    shown = filtered(*pieces)
    import re  # noqa: PLC0415

    rest = re.sub(r"\x1b\[[0-9;:]*m", "", shown)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", rest)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_where_a_piece_ends_makes_no_difference(data: bytes, cut: int) -> None:
    assert filtered(data[:cut], data[cut:]) == filtered(data)


def test_a_name_with_line_ends_and_escapes_stays_on_one_line() -> None:
    assert safe("a\nb\x1b[2J") == "a^Jb^[[2J"


def test_a_name_that_is_not_utf8_shows_its_bytes() -> None:
    assert safe(b"caf\xe9".decode(errors="surrogateescape")) == "caf\\xe9"


def test_text_that_reads_backwards_is_made_visible() -> None:
    assert safe("abc\u202etxt") == "abc\\u202etxt"


def test_line_ends_of_a_message_are_kept() -> None:
    assert safe_lines("one\r\ntwo\x07") == "one\ntwo^G"

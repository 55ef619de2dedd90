from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from executord.console.redaction import Redactor, patterns_of
from tests.fakes.consoles import masked_by_hand


def masked(text: bytes, secrets: tuple[bytes, ...], cuts: tuple[int, ...] = ()) -> bytes:
    redactor = Redactor(secrets)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    return b"".join(redactor.feed(piece) for piece in pieces) + redactor.flush()


few_letters = st.binary(max_size=40).map(lambda raw: bytes(b"ab\n"[byte % 3] for byte in raw))
secrets = st.lists(few_letters.filter(bool).map(lambda s: s[:6]), max_size=3).map(tuple)


@given(few_letters, secrets, st.lists(st.integers(0, 100), max_size=8).map(tuple))
def test_where_the_stream_is_cut_does_not_change_what_is_shown(
    text: bytes, hidden: tuple[bytes, ...], cuts: tuple[int, ...]
) -> None:
    assert masked(text, hidden, cuts) == masked_by_hand(text, hidden)


def test_only_what_may_begin_a_secret_is_held_back() -> None:
    redactor = Redactor((b"hunter2",))
    assert redactor.feed(b"password: hun") == b"password: "
    assert redactor.held == b"hun"
    assert redactor.feed(b"gry\n") == b"hungry\n"
    assert redactor.held == b""


def test_a_value_is_also_hidden_without_the_line_end_it_was_given_with() -> None:
    assert masked(b"key=s3cret!", patterns_of(["s3cret\n"])) == b"key=***!"


def test_an_empty_secret_hides_nothing() -> None:
    assert patterns_of(["", "  "]) == (b"  ",)
    assert masked(b"text", patterns_of([""])) == b"text"


def test_an_endless_chain_of_overlapping_secrets_does_not_hold_back_everything() -> None:
    redactor = Redactor((b"aa",))
    given_out = b""
    for _ in range(100):
        given_out += redactor.feed(b"a" * 4096)
        assert len(redactor.held) <= 8192
    assert given_out + redactor.flush() == b"***"

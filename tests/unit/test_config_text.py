"""Reading a configuration's text: on which line a key stands, and what a size amounts to."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.config.lines import find_lines, line_of
from executord.config.problems import BadValueError
from executord.config.values import format_size, parse_size

GIB = 1 << 30

# -- Lines -----------------------------------------------------------------------------------------


def test_keys_are_found_behind_strings_arrays_and_comments() -> None:
    text = '''# [not.a.table]
top = "x = 1 # no comment"
[a]
text = """
[no.table]
key = 1
ends in quotes""\"""
raw = \'\'\'
b = 2\\\'\'\'
list = [ # comment with ] in it
  "]", 1,
]
last = {x = "}", y = 2} # comment
[ a . "b c" ]
"q.r" = 1
s.'t' = 2
"\\u0061" = 3
[[many]]
one = 1
[[many]]
two = 2
'''
    tomllib.loads(text)
    lines = find_lines(text)
    assert lines == {
        ("top",): 2,
        ("a",): 3,
        ("a", "text"): 4,
        ("a", "raw"): 8,
        ("a", "list"): 10,
        ("a", "last"): 13,
        ("a", "b c"): 14,
        ("a", "b c", "q.r"): 15,
        ("a", "b c", "s"): 16,
        ("a", "b c", "s", "t"): 16,
        ("a", "b c", "a"): 17,
        ("many",): 18,
        ("many", "one"): 19,
        ("many", "two"): 21,
    }


def test_lines_are_counted_the_same_with_either_line_end() -> None:
    text = '[a]\nb = """\n\n"""\nc = 1\n'
    assert find_lines(text.replace("\n", "\r\n")) == find_lines(text)


def test_a_key_of_an_inline_table_stands_on_the_line_of_the_table() -> None:
    assert line_of(("files", "x"), find_lines("\nfiles = {x = 1}")) == 2
    assert line_of(("tiers", "a", "cpu"), find_lines("tiers = {a = {cpu = 1}}")) == 1
    assert line_of(("nowhere",), {}) is None


keys = st.text(st.sampled_from("ab.\"' =[]#\\\n"), min_size=1, max_size=4)
texts = st.text(st.sampled_from("a\"'=[]{}#\\\n "), max_size=12)


def quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


@given(st.lists(st.tuples(keys, texts), max_size=8, unique_by=lambda pair: pair[0]))
def test_any_keys_with_any_texts_are_found_on_their_lines(pairs: list[tuple[str, str]]) -> None:
    statements, expected, line = ["[t]"], {("t",): 1}, 2
    for key, value in pairs:
        statements.append(f"{quoted(key)} = [{quoted(value)}, # ]\n]")
        expected["t", key] = line  # type: ignore[index]
        line += 2
    text = "\n".join(statements)
    assert set(tomllib.loads(text)["t"]) == {key for key, _ in pairs}
    assert find_lines(text) == expected


# -- Sizes -----------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 50))
def test_every_size_is_read_back_as_it_was_written(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0B", 0), ("1.5GiB", 3 * GIB // 2), ("2 MB", 2_000_000), ("1KiB", 1024), ("3TB", 3 * 10**12)],
)
def test_sizes_are_read_in_both_systems(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e3KB", "1gib", "1G", "9" * 99 + "B"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadValueError):
        parse_size(text)

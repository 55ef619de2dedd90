"""The key of an environment: what changes it, and what must not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.core.reasons import FaultError, Reason
from executord.images.environment import (
    check_instructions,
    environment_key,
    environment_tag,
    is_image_id,
    normalised,
    registry_reference,
)

BASE = "sha256:" + "a" * 64


def _key(**changes: object) -> str:
    given_: dict[str, object] = {
        "base_id": BASE,
        "dockerfile": "RUN pip install pandas\n",
        "build_args": {"A": "1"},
        "platform": "amd64",
    }
    return environment_key(**{**given_, **changes})  # type: ignore[arg-type]


def test_a_key_is_64_hex_digits_and_fits_into_a_tag() -> None:
    key = _key()
    assert len(key) == 64
    assert environment_tag(key) == f"executord/env:{key}"
    assert registry_reference("127.0.0.1:5000/", key) == f"127.0.0.1:5000/env:{key}"


@pytest.mark.parametrize(
    "changes",
    [
        {"base_id": "sha256:" + "b" * 64},
        {"dockerfile": "RUN pip install numpy\n"},
        {"dockerfile": "RUN pip  install pandas\n"},
        {"dockerfile": " RUN pip install pandas && \\\n  true\n"},
        {"build_args": {"A": "2"}},
        {"build_args": {}},
        {"platform": "arm64"},
    ],
)
def test_whatever_decides_the_image_changes_the_key(changes: dict[str, object]) -> None:
    assert _key(**changes) != _key()


@pytest.mark.parametrize(
    "same",
    [
        "# why\nRUN pip install pandas\n",
        "\n\nRUN pip install pandas   \n\n\n",
        "RUN pip install pandas",
        "RUN pip install pandas\r\n",
        "RUN pip install pandas\n   # at the end",
    ],
)
def test_comments_and_trailing_blanks_do_not_change_the_key(same: str) -> None:
    assert _key(dockerfile=same) == _key()


def test_the_order_of_build_arguments_does_not_matter() -> None:
    first, second = {"A": "1", "B": "2"}, {"B": "2", "A": "1"}
    assert _key(build_args=first) == _key(build_args=second)


def test_a_comment_within_a_continued_instruction_does_not_matter() -> None:
    plain = "RUN a && \\\n    b\n"
    assert normalised("RUN a && \\\n# between\n    b\n") == normalised(plain)


def test_lines_of_a_here_document_are_content_even_if_they_look_like_comments() -> None:
    one, other = "RUN <<EOF\n# one\nEOF", "RUN <<EOF\n# other\nEOF"
    assert _key(dockerfile=one) != _key(dockerfile=other)


@given(st.text(alphabet="RUN \\#<\n\r\tab", max_size=60))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize("text", ["FROM debian", "# x\n\n  from debian\nRUN a", "From\tx"])
def test_instructions_that_begin_with_from_are_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(FaultError) as caught:
        check_instructions(text)
    assert caught.value.fault.reason is Reason.BUILD_FAILED
    assert "environment.image" in caught.value.fault.detail


@pytest.mark.parametrize("text", ["RUN a", "", "FROMAGE x", "# FROM x\nRUN a", "RUN a\nFROM b"])
def test_other_instructions_pass(text: str) -> None:
    check_instructions(text)


def test_an_engines_own_id_is_told_from_a_name() -> None:
    assert is_image_id(BASE)
    assert is_image_id("a" * 64)
    assert not is_image_id("python:3.12")
    assert not is_image_id(f"python@{BASE}")

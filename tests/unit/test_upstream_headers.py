"""Headers for the upstream come from a file that is read with suspicion, and never shown."""

import os
from pathlib import Path

import pytest

from executord.upstream.headers import HeadersError, HeadersFile

SECRET = "s3cr3t-canary"


def file_with(folder: Path, content: str, mode: int = 0o600) -> Path:
    path = folder / "headers"
    path.write_bytes(content.encode("latin-1"))
    path.chmod(mode)
    return path


def test_names_and_values_are_read_and_comments_skipped(tmp_path: Path) -> None:
    path = file_with(tmp_path, f"# ours\n\nAuthorization: Bearer {SECRET}\r\n X-Node :\tn 1 \n")
    with pytest.raises(HeadersError, match="line 4"):
        HeadersFile(path).read()
    path = file_with(tmp_path, f"# ours\n\nAuthorization: Bearer {SECRET}\r\n X-Node:\tn 1 \n")
    assert HeadersFile(path).read() == {"Authorization": f"Bearer {SECRET}", "X-Node": "n 1"}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = file_with(tmp_path, "A: 1\n")
    headers = HeadersFile(path)
    assert headers.read() == {"A": "1"}
    path.rename(tmp_path / "old")
    file_with(tmp_path, "A: 2\n")
    assert headers.read() == {"A": "2"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f"Authorization Bearer {SECRET}", 1),
        (f"A: 1\nB: {SECRET}\x00", 2),
        (f"A: 1\nB\x0b: {SECRET}", 2),
        (f": {SECRET}", 1),
        ("A:", 1),
        (f"Host: {SECRET}", 1),
        (f"content-TYPE: {SECRET}", 1),
        (f"Transfer-Encoding: {SECRET}", 1),
    ],
)
def test_a_line_that_is_not_a_header_is_named_without_its_value(
    tmp_path: Path, content: str, line: int
) -> None:
    with pytest.raises(HeadersError, match=f"line {line}") as caught:
        HeadersFile(file_with(tmp_path, content)).read()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(HeadersError, match="chmod 0640"):
        HeadersFile(file_with(tmp_path, "A: 1\n", mode)).read()


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_owner_and_group_may_read_it(tmp_path: Path, mode: int) -> None:
    assert HeadersFile(file_with(tmp_path, "A: 1\n", mode)).read() == {"A": "1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path, "A: 1\n")
    os.chown(path, 12345, -1)
    with pytest.raises(HeadersError, match="12345"):
        HeadersFile(path).read()


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    with pytest.raises(HeadersError, match="cannot be read"):
        HeadersFile(tmp_path / "nothing").read()
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(HeadersError, match="not a regular file"):
        HeadersFile(tmp_path / "fifo").read()
    with pytest.raises(HeadersError, match="longer than"):
        HeadersFile(file_with(tmp_path, "A: 1\n" * 20_000)).read()

"""The cursor of a list that is read page by page: opaque outside, a place in the order inside."""

import base64
import binascii
import re

_PREFIX = "runs-before:"
_FORM = re.compile(rf"{_PREFIX}([1-9][0-9]{{0,17}})", re.ASCII)


def cursor_of(accepted: int) -> str:
    return base64.urlsafe_b64encode(f"{_PREFIX}{accepted}".encode()).decode().rstrip("=")


def place_of(cursor: str) -> int:
    """ValueError for what no page gave out."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (UnicodeError, binascii.Error):
        text = ""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError("The cursor is not one that a page of runs gave out.")
    return int(found.group(1))

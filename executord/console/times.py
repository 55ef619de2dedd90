"""Times as the engine writes them: RFC 3339 with up to nine digits of a second, in UTC."""

from datetime import UTC, datetime
from functools import lru_cache

_SECONDS_LENGTH = len("2026-01-01T00:00:00")
_DIGITS = 9
_NANOSECONDS = 1_000_000_000
_LATEST = 2**63 - 1


def parse_time(text: str) -> int:
    """Unix nanoseconds; ValueError when it is not such a time."""
    rest = text[_SECONDS_LENGTH:]
    if not rest.endswith("Z"):
        raise ValueError(f"not a time in UTC: {text[:64]!r}")
    digits = rest[1:-1]
    if rest != "Z" and (rest[0] != "." or not digits.isdecimal() or len(digits) > _DIGITS):
        raise ValueError(f"not a fraction of a second: {text[:64]!r}")
    time_ns = _seconds(text[:_SECONDS_LENGTH]) * _NANOSECONDS + int(digits.ljust(_DIGITS, "0"))
    if not 0 <= time_ns <= _LATEST:
        raise ValueError(f"out of range: {text[:64]!r}")
    return time_ns


@lru_cache(maxsize=64)
def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())

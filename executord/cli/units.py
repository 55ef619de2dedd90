"""Sizes, durations and times as people read them."""

import time
from typing import Any

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float | None) -> str:
    """1536 → "1.5 KiB"; None, where nobody knows, → "-"."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in _SIZES:
        if abs(amount) < 1024 or unit == _SIZES[-1]:
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" or abs(amount) >= 100 else f"{amount:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """0.0042 → "4 ms", 75 → "1m 15s"; None → "-"."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if 0 < milliseconds < 1 else f"{milliseconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    while parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{amount}{unit}" for amount, unit in parts[:2])


def unix_time(value: Any) -> float | None:
    """Unix seconds of what the daemon sends: a number, or RFC 3339 text."""
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str) or not value:
        return None
    from datetime import datetime  # noqa: PLC0415 - not every command needs it

    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None


def moment(value: Any, *, precise: bool = False) -> str:
    """Local time: "2031-05-04 10:11:12", with milliseconds where `precise`; "-" where unknown."""
    seconds = unix_time(value)
    if seconds is None:
        return "-"
    try:
        text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "-"
    return f"{text}.{int(seconds % 1 * 1000):03d}" if precise else text


def clock(value: Any) -> str:
    """The time of day alone, with milliseconds."""
    return moment(value, precise=True).rpartition(" ")[2]


def ago(value: Any, *, now: float | None = None) -> str:
    """How long since: "3m 5s ago"; "-" where unknown."""
    seconds = unix_time(value)
    if seconds is None:
        return "-"
    passed = max((time.time() if now is None else now) - seconds, 0.0)
    if passed < 1:
        return "now"
    return f"{int(passed)}s ago" if passed < 60 else f"{duration(passed)} ago"


def utc(value: Any) -> str:
    """RFC 3339 in UTC with microseconds, the form in which machines keep times."""
    seconds = unix_time(value)
    if seconds is None:
        return "-"
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{int(seconds % 1 * 1_000_000):06d}Z"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def short_digest(digest: str) -> str:
    """`sha256:` and the first 12 characters, as container tools do."""
    kind, colon, value = digest.partition(":")
    return f"{kind}:{value[:12]}" if colon else digest[:19]

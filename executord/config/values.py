"""From a TOML value to a setting: text, numbers, sizes.

A parser is a plain function of the value; one that needs limits is made by a function. Each raises
BadValueError with a sentence that says what is wrong and what would be right.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from executord.config.problems import BadValueError

Parse = Callable[[Any], Any]

_UNITS: dict[str, int] = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGTP", start=1)
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]{1,8})")
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CREDENTIALS = re.compile(r"//[^/\s]*@")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadValueError(f"{shown(value)} is not text; put it in quotes")
    if "\0" in value or "\n" in value:
        raise BadValueError("has a line break or a NUL in it; it has to be one line of text")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadValueError(f"{shown(value)} is neither true nor false (without quotes)")
    return value


def number(*, least: float, most: float, unit: str, above: bool = False) -> Parse:
    """A number within limits; with `above` the least itself is too little."""

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadValueError(
                f"{shown(value)} is not a number of {unit}; write one without quotes"
            )
        if not least <= value <= most or (above and value == least):
            limits = f"above {least:g} and at most {most:g}" if above else f"{least:g} to {most:g}"
            raise BadValueError(f"{value} is out of range; {unit} have to be {limits}")
        return float(value)

    return parse


def whole(*, least: int, most: int, unit: str) -> Parse:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValueError(f"{shown(value)} is not a whole number of {unit}; do not quote it")
        if not least <= value <= most:
            raise BadValueError(f"{value} is out of range; {unit} have to be {least} to {most}")
        return value

    return parse


def size(*, least: str = "0B", most: str = "1PiB") -> Parse:
    """Bytes, from text such as "2GiB"."""

    def parse(value: Any) -> int:
        found = parse_size(value)
        if not parse_size(least) <= found <= parse_size(most):
            raise BadValueError(f"{value} is out of range; it has to be {least} to {most}")
        return found

    return parse


def parse_size(value: Any) -> int:
    example = 'write a size with its unit, such as "512MiB" or "2GiB"'
    if not isinstance(value, str):
        raise BadValueError(f"{shown(value)} has no unit; {example}")
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise BadValueError(f"{shown(value)} is not a size; {example}")
    amount, unit = match.groups()
    if unit not in _UNITS:
        raise BadValueError(f"{unit!r} is not a unit of size; use one of {', '.join(_UNITS)}")
    return int(Fraction(amount) * _UNITS[unit])


def format_size(size_bytes: int) -> str:
    """The shortest text that `parse_size` reads as exactly this many bytes."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def one_of(*choices: str) -> Parse:
    def parse(value: Any) -> str:
        if value not in choices:
            raise BadValueError(f"{shown(value)} is not one of {quoted(choices)}")
        return str(value)

    return parse


def node_name(value: Any) -> str:
    name = text(value)
    if not _NODE_NAME.fullmatch(name):
        raise BadValueError(
            f"{shown(value)} cannot name a node; use up to 64 letters, digits, '.', '_' and '-'"
        )
    return name


def options(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadValueError(f'{shown(value)} is not a table; write {{ region = "eu-west-1" }}')
    found: dict[str, str] = {}
    for key, each in value.items():
        if isinstance(each, bool):
            found[key] = "true" if each else "false"
        elif isinstance(each, (str, int)):
            found[key] = str(each)
        else:
            raise BadValueError(f"the option {key!r} has to be text, a number, true or false")
    return found


def a_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadValueError(f'{shown(value)} is not a list; write ["…", "…"]')
    return value


def patterns(value: Any) -> tuple[str, ...]:
    """Lines as in a .gitignore."""
    lines = tuple(text(each) for each in a_list(value))
    if any(not line.strip() for line in lines):
        raise BadValueError('has an empty pattern in it; write patterns such as "*.log" or "/out/"')
    return lines


def quoted(choices: Sequence[str]) -> str:
    return ", ".join(f'"{choice}"' for choice in choices)


def shown(value: Any) -> str:
    """The value, cut, and without a password: it may be anything."""
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    shown = _CREDENTIALS.sub("//…@", shown)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"

"""What executorctl prints, in one place: results on stdout, everything said about them on stderr.

Colours only where a person looks: on a terminal, unless NO_COLOR is set or TERM is dumb.
"""

import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import IO, Any

from executord.cli.terminal import safe, safe_lines
from executord.cli.units import size

STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}

STATE_STYLES = {
    "Queued": "dim",
    "Scheduled": "dim",
    "Preparing": "cyan",
    "Building": "magenta",
    "Pulling": "magenta",
    "Running": "blue",
    "Finishing": "cyan",
    "StopRequested": "yellow",
    "Stopping": "yellow",
    "Succeeded": "green",
    "Stopped": "yellow",
    "Failed": "red",
    "Error": "red",
}


CHANGES = {"added": ("A", "green"), "changed": ("M", "yellow"), "deleted": ("D", "red")}


class Output:
    """The two streams of a command. Everything given to it is made safe for a terminal first."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.colour = is_coloured(sys.stdout)
        self.colour_notes = is_coloured(sys.stderr)

    def line(self, text: str = "", *, at_once: bool = False) -> None:
        """`text` may hold styles; other people's words in it went through `safe`."""
        print(text, flush=at_once)

    def json(self, value: Any, *, compact: bool = False) -> None:
        import json  # noqa: PLC0415 - not every command needs it

        if compact:
            print(json.dumps(value, separators=(",", ":")), flush=True)
        else:
            print(json.dumps(value, indent=2))

    def note(self, text: str) -> None:
        """Said to a person on the way; never a result."""
        if not self.quiet:
            print(safe_lines(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        print(self._on_stderr(safe_lines(text), "yellow"), file=sys.stderr, flush=True)

    def error(self, text: str, advice: str = "") -> None:
        print(
            f"{self._on_stderr('executorctl:', 'red')} {safe_lines(text)}",
            file=sys.stderr,
            flush=True,
        )
        if advice:
            print(f"  {safe_lines(advice)}", file=sys.stderr, flush=True)

    def styled(self, text: str, style: str) -> str:
        return styled(text, style) if self.colour else text

    def state(self, state: str) -> str:
        return self.styled(safe(state), STATE_STYLES.get(state, "bold"))

    def _on_stderr(self, text: str, style: str) -> str:
        return styled(text, style) if self.colour_notes else text

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        right: Sequence[str] = (),
        styles: Sequence[Sequence[str]] = (),
    ) -> None:
        """Columns named in `right` hold numbers. `styles` names a style for a cell, or ""."""
        cells = [[safe(cell) for cell in row] for row in rows]
        widths = [
            max(_width(column) for column in (header, *(row[i] for row in cells)))
            for i, header in enumerate(headers)
        ]
        room = terminal_width() - sum(widths[:-1]) - 2 * (len(widths) - 1)
        if sys.stdout.isatty() and headers[-1] not in right:
            widths[-1] = min(widths[-1], max(room, 20))
        heads = [_padded(h.upper(), w, h in right) for h, w in zip(headers, widths, strict=True)]
        self.line(self.styled("  ".join(heads).rstrip(), "bold"))
        for number, row in enumerate(cells):
            shown = []
            for i, cell in enumerate(row):
                text = _padded(_cut(cell, widths[i]), widths[i], headers[i] in right)
                style = styles[number][i] if number < len(styles) else ""
                shown.append(self.styled(text, style) if style else text)
            self.line("  ".join(shown).rstrip())

    def change(self, kind: str, size_bytes: int | None, path: str) -> None:
        """One changed file: A for added, M for changed, D for deleted."""
        mark, style = CHANGES.get(kind, ("?", ""))
        amount = "" if kind == "deleted" else size(size_bytes)
        self.line(f"{self.styled(mark, style)}  {amount:>10}  {safe(path)}")

    def facts(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values below each other; an empty value leaves its line out."""
        given = [(name, value) for name, value in pairs if value not in (None, "")]
        width = max((len(name) for name, _ in given), default=0)
        for name, value in given:
            self.line(f"{self.styled(f'{name}:'.ljust(width + 1), 'dim')} {value}")


def styled(text: str, style: str) -> str:
    code = STYLES.get(style)
    return f"\x1b[{code}m{text}\x1b[0m" if code and text else text


def is_coloured(stream: IO[str]) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def terminal_width() -> int:
    for stream in (sys.stdout, sys.stderr):
        try:
            return os.get_terminal_size(stream.fileno()).columns or 80
        except (OSError, ValueError):
            continue
    return 80


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def _padded(text: str, width: int, to_the_right: bool) -> str:  # noqa: FBT001
    space = " " * (width - _width(text))
    return space + text if to_the_right else text + space

"""Where in a TOML text a key stands. The standard parser gives values, but no places.

A small scanner over text that the real parser has accepted: it only has to tell headers, keys and
values apart. Keys inside an inline table stand on the line of the key that holds the table.
"""

import tomllib
from collections.abc import Mapping

KeyPath = tuple[str, ...]


def find_lines(text: str) -> Mapping[KeyPath, int]:
    """The line, from 1, of every table header and key, by path; the first place counts."""
    return _Scanner(text).scan()


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    """The line of the key, or of the nearest thing around it that has one."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._lines: dict[KeyPath, int] = {}

    def scan(self) -> Mapping[KeyPath, int]:
        table: KeyPath = ()
        while self._skip_to_statement():
            line = self._text.count("\n", 0, self._at) + 1
            if self._peek() == "[":
                table = _parse_key(self._take_header())
                self._note(table, line)
            else:
                path = table + _parse_key(self._take_key())
                self._note(path, line)
                self._skip_value()
        return self._lines

    def _note(self, path: KeyPath, line: int) -> None:
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_to_statement(self) -> bool:
        while self._at < len(self._text):
            if self._peek() in " \t\n":
                self._at += 1
            elif self._peek() == "#":
                self._skip_comment()
            else:
                return True
        return False

    def _skip_comment(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end

    def _take_header(self) -> str:
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        start = self._at
        self._skip_until("]")
        header = self._text[start : self._at]
        self._at += brackets
        return header

    def _take_key(self) -> str:
        start = self._at
        self._skip_until("=")
        key = self._text[start : self._at]
        self._at += 1
        return key

    def _skip_until(self, stop: str) -> None:
        while self._at < len(self._text) and self._peek() != stop:
            self._skip_piece()

    def _skip_value(self) -> None:
        depth = 0
        while self._at < len(self._text):
            character = self._peek()
            if character == "\n" and depth == 0:
                return
            if character == "#":
                self._skip_comment()
                continue
            depth += (character in "[{") - (character in "]}")
            self._skip_piece()

    def _skip_piece(self) -> None:
        """One character, or one whole string."""
        for quote in ('"""', "'''", '"', "'"):
            if self._text.startswith(quote, self._at):
                self._skip_string(quote)
                return
        self._at += 1

    def _skip_string(self, quote: str) -> None:
        self._at += len(quote)
        while self._at < len(self._text):
            if self._peek() == "\\" and quote.startswith('"'):
                self._at += 2
            elif self._text.startswith(quote, self._at):
                self._at += len(quote)
                self._skip_quotes_that_end_the_text(quote)
                return
            else:
                self._at += 1

    def _skip_quotes_that_end_the_text(self, quote: str) -> None:
        """A multi-line string may end in up to two quotes of its own before the closing three."""
        if len(quote) == 1:
            return
        for _ in range(2):
            if self._peek() == quote[0]:
                self._at += 1


def _parse_key(raw: str) -> KeyPath:
    """The parts of a dotted key, read by the real parser, so that quotes and escapes are right."""
    found: object = tomllib.loads(f"{raw} = 0")
    path: list[str] = []
    while isinstance(found, dict):
        ((part, found),) = found.items()
        path.append(part)
    return tuple(path)

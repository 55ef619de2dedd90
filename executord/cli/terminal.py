"""Text from other people, made safe for a terminal.

Escape sequences can rename a window, write to the clipboard, answer for the keyboard or hide what
was said. Of user code only newline, tab, carriage return and colours (SGR) reach a terminal.
"""

import codecs
import re

_COLOUR = r"\x1b\[[0-9;:]*m"
_LAYOUT = r"\x1b\[[0-?]*[ -/]*[@-~]"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
_FOUND = re.compile(f"(?P<colour>{_COLOUR})|(?P<layout>{_LAYOUT})|(?P<control>{_CONTROL})")
_UNFINISHED = re.compile(r"\x1b(\[[0-?]*[ -/]*)?\Z")
_RESET = re.compile(r"\x1b\[0*m")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_LONGEST_SEQUENCE = 64
COLOUR_RESET = "\x1b[0m"


class Filter:
    """Makes one stream of console bytes safe, piece by piece, also where a piece ends mid-way.

    Other control sequences that only move the cursor or erase are dropped; everything else becomes
    visible, in caret notation or as a hexadecimal code.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""
        self._coloured = False

    def feed(self, data: bytes) -> str:
        text = self._held + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text, max(len(text) - _LONGEST_SEQUENCE, 0))
        self._held = unfinished.group() if unfinished else ""
        return self._clean(text[: len(text) - len(self._held)])

    def end(self) -> str:
        """What was held back, and the end of any colour that user code left switched on."""
        text = self._clean(self._held + self._decoder.decode(b"", final=True))
        self._held = ""
        if self._coloured:
            self._coloured = False
            text += COLOUR_RESET
        return text

    def _clean(self, text: str) -> str:
        return _FOUND.sub(self._shown, text)

    def _shown(self, found: re.Match[str]) -> str:
        if found["colour"]:
            self._coloured = _RESET.fullmatch(found.group()) is None
            return found.group()
        return "" if found["layout"] else _visible(found)


def _visible(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x20:
        return f"^{chr(code + 0x40)}"
    if code == 0x7F:
        return "^?"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as `surrogateescape` carries it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def safe(text: object) -> str:
    """`text` on one line with nothing in it that a terminal would act upon."""
    return _UNSAFE.sub(_visible, str(text))


def safe_lines(text: object) -> str:
    """As `safe`, with line ends kept."""
    return "\n".join(safe(line) for line in str(text).replace("\r\n", "\n").split("\n"))

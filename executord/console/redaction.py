"""Masking of secrets in a stream of bytes, also where one is cut into pieces.

What may turn out to be the beginning of a secret is held back until more is known, and nothing
else is. Occurrences that overlap or touch become one mask, so that the result does not depend on
how the stream was cut.
"""

from collections.abc import Iterable

MASK = b"***"
_LONGEST_HOLD_BYTES = 8 * 1024


def patterns_of(values: Iterable[str]) -> tuple[bytes, ...]:
    """What to look for: each value as it is, and without the white space around it."""
    found: set[bytes] = set()
    for value in values:
        for form in (value, value.strip()):
            if form:
                found.add(form.encode("utf-8", "surrogateescape"))
    return tuple(sorted(found))


class Redactor:
    """One stream's mask. `held` is the raw end of what was fed and not yet given out."""

    def __init__(self, patterns: tuple[bytes, ...]) -> None:
        self.patterns = patterns
        self.held = b""
        self._covered = 0
        self._open_mask = False

    def feed(self, data: bytes) -> bytes:
        """What is certain now: masked, without the end that is held back."""
        if not self.patterns and not self.held:
            return data
        if not self.held and not self._open_mask and not any(p in data for p in self.patterns):
            keep_from = self._first_uncertain(data)
            self.held = data[keep_from:]
            return data[:keep_from]
        whole = self.held + data
        masks = self._masks(whole)
        keep_from = self._first_uncertain(whole)
        for begin, end in reversed(masks):
            if begin < keep_from < end and len(whole) - begin <= _LONGEST_HOLD_BYTES:
                keep_from = begin
        return self._give(whole, masks, keep_from)

    def flush(self) -> bytes:
        """The rest: no more data will come."""
        return self._give(self.held, self._masks(self.held), len(self.held))

    def _masks(self, whole: bytes) -> list[tuple[int, int]]:
        found = [(0, self._covered)] if self._covered else []
        for pattern in self.patterns:
            at = whole.find(pattern)
            while at >= 0:
                found.append((at, at + len(pattern)))
                at = whole.find(pattern, at + 1)
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(found):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        return merged

    def _first_uncertain(self, whole: bytes) -> int:
        """From where on the end could become a secret, were more to follow."""
        uncertain = len(whole)
        for pattern in self.patterns:
            first = pattern[:1]
            at = whole.find(first, max(0, len(whole) - len(pattern) + 1), uncertain)
            while at >= 0 and not pattern.startswith(whole[at:]):
                at = whole.find(first, at + 1, uncertain)
            if at >= 0:
                uncertain = at
        return uncertain

    def _give(self, whole: bytes, masks: list[tuple[int, int]], keep_from: int) -> bytes:
        out: list[bytes] = []
        at = 0
        self._covered = 0
        open_mask = self._open_mask and keep_from == 0
        for begin, end in masks:
            if begin >= keep_from:
                break
            out.append(whole[at:begin])
            if not (begin == 0 and self._open_mask):
                out.append(MASK)
            at = min(end, keep_from)
            self._covered = end - at
            open_mask = at == keep_from
        out.append(whole[at:keep_from])
        self._open_mask = open_mask
        self.held = whole[keep_from:]
        return b"".join(out)

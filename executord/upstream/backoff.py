"""How long to wait before the next try: exponential, with full jitter.

https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from collections.abc import Callable

_SHORTEST_SECONDS = 0.5
_FIRST_CEILING_SECONDS = 1.0
_LONGEST_SECONDS = 60.0
_LONGEST_ASKED_FOR_SECONDS = 3600.0
_DOUBLINGS = 16


class Backoff:
    """The n-th wait is drawn evenly from 0.5 to min(60, 2^(n-1)) seconds; `draw` gives 0 to 1.

    Jitter over the whole range keeps a hundred nodes from coming back in step when an upstream
    recovers.
    """

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self.failures = 0

    def next_seconds(self, *, at_least: float | None) -> float:
        """`at_least` is what the receiver asked for; it is believed up to an hour."""
        doublings = min(self.failures, _DOUBLINGS)
        ceiling = min(_LONGEST_SECONDS, _FIRST_CEILING_SECONDS * float(1 << doublings))
        self.failures += 1
        asked = min(at_least or 0.0, _LONGEST_ASKED_FOR_SECONDS)
        drawn = _SHORTEST_SECONDS + self._draw() * (ceiling - _SHORTEST_SECONDS)
        return asked + drawn if asked > 0 else drawn

    def reset(self) -> None:
        self.failures = 0

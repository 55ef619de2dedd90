"""Room that was made for work under way, and that this work has not filled yet."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from executord.core.eviction import NOTHING, Space


@dataclass(slots=True, eq=False)
class Promise:
    """`left` is still to be written; `asked` is the most that was wanted at once."""

    left: Space = NOTHING
    asked: Space = NOTHING


class Promises:
    """Safe in any thread."""

    def __init__(self) -> None:
        self._all: list[Promise] = []
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[Promise]:
        """Counted until the work ends."""
        promise = Promise()
        with self._lock:
            self._all.append(promise)
        try:
            yield promise
        finally:
            with self._lock:
                self._all.remove(promise)

    def expect(self, incoming: Space, promise: Promise | None) -> Space:
        """All that is to come now; `incoming` is a part of what `promise` has left, or more."""
        with self._lock:
            if promise is None:
                return _sum(self._all).plus(incoming)
            promise.left = _most(promise.left, incoming)
            promise.asked = _most(promise.asked, promise.left)
            return _sum(self._all)

    def kept(self, promise: Promise, written: Space) -> None:
        """So much of it takes its room by now."""
        with self._lock:
            promise.left = Space(
                max(0, promise.left.bytes - written.bytes),
                max(0, promise.left.inodes - written.inodes),
            )

    def begin_again(self, promise: Promise) -> Space:
        """What it asked for, for work that lost what it had written."""
        with self._lock:
            promise.left = promise.asked
            return _sum(self._all)


def _sum(promises: list[Promise]) -> Space:
    total = NOTHING
    for promise in promises:
        total = total.plus(promise.left)
    return total


def _most(one: Space, other: Space) -> Space:
    return Space(max(one.bytes, other.bytes), max(one.inodes, other.inodes))

"""Work that gives way to everybody else at the disk, until somebody waits for it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from executord.files.system.priority import set_idle

_current = threading.local()


class IdleWork:
    """One piece of work, in any number of threads. `hurried` is True once somebody waits for it;
    it never becomes False again.
    """

    def __init__(self, *, hurried: bool = False) -> None:
        self.hurried = hurried
        self._threads: set[int] = set()
        self._lock = threading.Lock()

    def hurry(self) -> None:
        """All its threads get their ordinary share, now and from now on."""
        with self._lock:
            if self.hurried:
                return
            self.hurried = True
            for thread in self._threads:
                set_idle(thread, idle=False)

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """The thread gives way while it is inside, unless the work is hurried."""
        before = getattr(_current, "work", None)
        thread = threading.get_native_id()
        _current.work = self
        self.add(thread)
        try:
            yield
        finally:
            _current.work = before
            self.remove(thread)

    def add(self, thread: int) -> None:
        with self._lock:
            self._threads.add(thread)
            set_idle(thread, idle=not self.hurried)

    def remove(self, thread: int) -> None:
        with self._lock:
            self._threads.discard(thread)
            set_idle(thread, idle=False)


@contextmanager
def helped_by(process: int) -> Iterator[None]:
    """A process of one thread, which works for this thread meanwhile, gives way as this one does;
    afterwards it does not, whoever started it.
    """
    work: IdleWork | None = getattr(_current, "work", None)
    if work is None:
        yield
        return
    work.add(process)
    try:
        yield
    finally:
        work.remove(process)


def helpers_join() -> Callable[[], None]:
    """To be called first in every thread that helps this one, for as long as it lives."""
    work: IdleWork | None = getattr(_current, "work", None)

    def join() -> None:
        if work is not None:
            _current.work = work
            work.add(threading.get_native_id())

    return join

"""
One engine, several users: who starts it, and who stops it.

Each user holds the lock `users` shared for as long as it runs; who can take it alone is the only
one. So nothing is counted that a killed user could leave behind. The lock `engine` is held while
somebody starts or stops the engine.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from tests.setup.state import FileLock, locked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.setup.state import DevFolder


class Shared(Protocol):
    """What is shared. Both may be repeated; only one process at a time is in either."""

    def ensure(self, *, is_first: bool) -> None: ...

    def stop(self) -> None: ...


class Sharing:
    """One process's part in it."""

    def __init__(self, folder: DevFolder) -> None:
        self._folder = folder
        self._users = FileLock(folder.lock_file("users"))

    @contextlib.contextmanager
    def joined(self, engine: Shared) -> Iterator[None]:
        """Use it: it answers inside, and is stopped after its last user unless it is kept."""
        with self._starting_or_stopping():
            is_first = self._users.try_take()
            self._users.take(shared=True)
            try:
                engine.ensure(is_first=is_first)
            except BaseException:
                self._stop_if_last(engine)
                raise
        try:
            yield
        finally:
            self._leave(engine)

    def keep(self) -> None:
        """Let it stay up without users, until somebody wants it `alone`."""
        self._folder.kept.touch()

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Have it without users, and let none in meanwhile; False while others use it."""
        with self._starting_or_stopping():
            self._folder.kept.unlink(missing_ok=True)
            is_alone = self._users.try_take()
            try:
                yield is_alone
            finally:
                self._users.release()

    def _leave(self, engine: Shared) -> None:
        with self._starting_or_stopping():
            self._stop_if_last(engine)

    def _stop_if_last(self, engine: Shared) -> None:
        self._users.release()
        if not self._folder.kept.exists() and self._users.try_take():
            try:
                engine.stop()
            finally:
                self._users.release()

    def _starting_or_stopping(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._folder.lock_file("engine"))

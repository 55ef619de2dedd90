"""Blobs read again and compared with their digests, where this daemon has not done so yet."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.damage_control import DamageControl
from executord.files.cache.quarantine import FoundBy
from executord.files.cache.tree_check import Way
from executord.files.faults import CancelledWorkError
from executord.files.system.directories import NotRegularError, open_regular
from executord.files.system.hashing import digest_of
from executord.files.system.parallel import side_by_side

_HASHERS = 2
_LARGE_BYTES = 1 << 20
_LOOK_UP_EVERY = 64


class BlobCheck:
    """Blocks; any thread may call it."""

    def __init__(self, blobs: Blobs, control: DamageControl) -> None:
        self._blobs = blobs
        self._control = control

    def check(
        self, keys: Iterable[BlobKey], way: Way, found_by: FoundBy, *, act: bool = True
    ) -> list[tuple[BlobKey, str]]:
        """Those that are bad and why; with `act` they are in quarantine. One that is not there is
        not bad. Raises OSError, CancelledWorkError.
        """
        bad: list[tuple[BlobKey, str]] = []
        large: list[tuple[BlobKey, os.stat_result]] = []
        lock = threading.Lock()

        def one(item: tuple[BlobKey, os.stat_result]) -> None:
            key, facts = item
            what, hashes_to = self._wrong(key, facts, way)
            way.counter.add(1, facts.st_size)
            if not what:
                way.known.add(facts.st_ino)
                self._blobs.found_right.add(facts.st_ino)
                return
            with lock:
                bad.append((key, what))
            if act:
                self._control.bad_blob(key, hashes_to=hashes_to, what=what, found_by=found_by)
            else:
                self._control.suspect((facts.st_ino,))

        for number, key in enumerate(keys):
            if number % _LOOK_UP_EVERY == 0 and way.cancelled.is_set():
                raise CancelledWorkError
            try:
                facts = os.lstat(self._blobs.path(key))
            except FileNotFoundError:
                continue
            if facts.st_ino in way.known:
                way.counter.add(1, facts.st_size)
            elif facts.st_size >= _LARGE_BYTES:
                large.append((key, facts))
            else:
                one((key, facts))
        for _ in side_by_side(_HASHERS, large, one):
            pass
        return bad

    def _wrong(self, key: BlobKey, facts: os.stat_result, way: Way) -> tuple[str, str]:
        """Why it is bad, "" where it is not, and what it hashes to, as far as that is known."""
        wrong = []
        if facts.st_mode & 0o7777 != self._blobs.mode_of(key):
            wrong.append(f"has mode {facts.st_mode & 0o7777:o}")
        if (facts.st_uid, facts.st_gid) != self._blobs.owner:
            wrong.append(f"belongs to {facts.st_uid}:{facts.st_gid}")
        content, found = self._wrong_content(key, facts, way)
        if content is None:
            return "", ""
        return " and ".join([*wrong, *filter(None, (content,))]), found

    def _wrong_content(
        self, key: BlobKey, facts: os.stat_result, way: Way
    ) -> tuple[str | None, str]:
        """None where it has gone meanwhile."""
        path = Path(self._blobs.path(key))
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fd = open_regular(folder, path.name)
            finally:
                os.close(folder)
            try:
                found = digest_of(fd, facts.st_size, cancelled=way.cancelled, rest=way.rest)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None, ""
        except NotRegularError:
            return "is no file", ""
        except OSError as error:
            return f"cannot be read: {error.strerror}", ""
        return ("", found) if found == key.digest else ("has other content", found)

"""What a client's files hashed to last time, so that a push reads only what has changed.

A file whose size, times and inode are as they were is taken to be the same. One that was touched
within two seconds before it was hashed is not remembered: a later change may leave no trace in
its times (git calls that racy). A change through mmap shows in no time at all until it is synced.
"""

import contextlib
import hashlib
import os
import time
from pathlib import Path

import msgspec

from executord.files.model import digests
from executord.files.system import disk

_FORM = 1
RACY_NS = 2_000_000_000

Known = tuple[int, int, int, int, bytes]
"""Size, mtime and ctime in ns, inode, digest."""


class _Written(msgspec.Struct, array_like=True):
    form: int
    files: dict[bytes, Known]


_decoder = msgspec.msgpack.Decoder(_Written)


class StatCache:
    """One directory's. Losing it costs time, never correctness; so its errors are swallowed."""

    def __init__(self, directory: Path, cache_home: Path | None = None) -> None:
        home = cache_home if cache_home is not None else default_home()
        name = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:32]
        self._path = home / "stat-v1" / name
        self._before = self._load()
        self._now: dict[bytes, Known] = {}

    def digest(self, path: str, facts: os.stat_result) -> str | None:
        """None where the file has to be read."""
        key = os.fsencode(path)
        known = self._before.get(key)
        if known is None or known[:4] != _marks(facts):
            return None
        self._now[key] = known
        return digests.PREFIX + known[4].hex()

    def remember(self, path: str, facts: os.stat_result, digest: str) -> None:
        """`facts` are from before the file was read."""
        if max(facts.st_mtime_ns, facts.st_ctime_ns) + RACY_NS < time.time_ns():
            raw = bytes.fromhex(digests.hex_of(digest))
            self._now[os.fsencode(path)] = (*_marks(facts), raw)

    def forget(self, path: str) -> None:
        self._now.pop(os.fsencode(path), None)

    def save(self) -> None:
        if self._now == self._before:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            data = msgspec.msgpack.encode(_Written(_FORM, self._now))
            disk.write_whole(self._path, data, durable=False, mode=0o600)

    def _load(self) -> dict[bytes, Known]:
        try:
            written = _decoder.decode(self._path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return {}
        usable = written.form == _FORM and all(len(k[4]) == 32 for k in written.files.values())
        return written.files if usable else {}


def default_home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "executord"


def _marks(facts: os.stat_result) -> tuple[int, int, int, int]:
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino

"""Is it still the store that this node knows?

A mount point without its disk looks like a store that has lost everything; what were written there
would be gone when the disk is back. So a store carries a name drawn by whoever first writes to it,
and a node that has met it accepts no other under the same address.
"""

import contextlib
import secrets
import threading
import time
from pathlib import Path

import msgspec

from executord.core.reasons import Reason
from executord.files.faults import disk, fault
from executord.files.model import digests
from executord.files.store.bucket import Bucket, MissingObjectError
from executord.files.system import disk as disks

KEY = "identity"
_NAME_BYTES = 16
_MAX_BYTES = 256
_FRESH_SECONDS = 1.0


class _Memory(msgspec.Struct, frozen=True):
    """The names of stores by address; one that a disk has spoilt is as none."""

    stores: dict[str, str]
    checksum: str


def _checksum(stores: dict[str, str]) -> str:
    return digests.of_bytes(msgspec.json.encode(stores, order="sorted"))


class Identity:
    """`known` is the file in which a node remembers, by address, whom it has met; None for a
    client, which remembers nothing. Blocks; safe in any thread.
    """

    def __init__(self, url: str, bucket: Bucket, known: Path | None) -> None:
        self._url = url
        self._bucket = bucket
        self._known = known
        self._lock = threading.Lock()
        self._met = ""
        self._confirmed_at = float("-inf")

    def confirm(self, *, writing: bool) -> None:
        """Raises STORE_UNAVAILABLE where it is another store, or lost its name."""
        with self._lock:
            if time.monotonic() - self._confirmed_at < _FRESH_SECONDS:
                return
            expected = self._met or self._remembered()
            found = self._found()
            if expected and found != expected:
                raise self._not_it(found)
            if not found and writing:
                found = self._named()
            if found and not expected:
                self._remember(found)
            if found:
                self._met = found
                self._confirmed_at = time.monotonic()

    def _found(self) -> str:
        data = b""
        with contextlib.suppress(MissingObjectError):
            for piece in self._bucket.read(KEY):
                data += piece
                if len(data) > _MAX_BYTES:
                    break
        return data.decode("ascii", errors="replace").strip()[:_MAX_BYTES]

    def _named(self) -> str:
        self._bucket.swap(KEY, b"", secrets.token_hex(_NAME_BYTES).encode())
        return self._found()  # somebody else may have been first

    def _remembered(self) -> str:
        return self._all().get(self._url, "")

    def _all(self) -> dict[str, str]:
        if self._known is None:
            return {}
        try:
            memory = msgspec.json.decode(self._known.read_bytes(), type=_Memory)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        return memory.stores if memory.checksum == _checksum(memory.stores) else {}

    def _remember(self, name: str) -> None:
        if self._known is None:
            return
        with disk("remember the store"):
            stores = {**self._all(), self._url: name}
            memory = _Memory(stores=stores, checksum=_checksum(stores))
            data = msgspec.json.encode(memory)
            disks.write_whole(self._known, data, durable=True, mode=0o600)

    def _not_it(self, found: str) -> Exception:
        what = "carries another store's name" if found else "lacks the name that it had"
        return fault(
            Reason.STORE_UNAVAILABLE,
            f"What is at {self._url} is not the store that this node knows: it {what}. Is its disk "
            f"mounted? Where it was replaced on purpose, remove {self._known} on the node.",
        )

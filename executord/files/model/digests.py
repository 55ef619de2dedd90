"""SHA-256 digests, written `sha256:<64 hex digits>`."""

import hashlib
import re
from collections.abc import Iterable

PREFIX = "sha256:"
_FORM = re.compile(r"sha256:[0-9a-f]{64}")


class BadDigestError(ValueError):
    """A text that is not a digest."""


def of_bytes(data: bytes) -> str:
    return PREFIX + hashlib.sha256(data).hexdigest()


def of_chunks(chunks: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return PREFIX + hasher.hexdigest()


def is_digest(text: str) -> bool:
    return _FORM.fullmatch(text) is not None


def hex_of(digest: str) -> str:
    """The 64 hex digits, safe as a file name. Raises BadDigestError for anything else."""
    if not is_digest(digest):
        raise BadDigestError(f"{digest[:80]!r} is not a digest (sha256: and 64 hex digits)")
    return digest[len(PREFIX) :]


def from_hex(text: str) -> str:
    digest = PREFIX + text
    hex_of(digest)
    return digest


EMPTY = of_bytes(b"")

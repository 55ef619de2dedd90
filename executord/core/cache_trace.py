"""What a file cache was asked for: uses of trees, with what having them again would cost.

One use is one JSON object. The blobs of a tree are told with its first use, as a sample when they
are many: each blob is in it with a probability in proportion to its blocks, decided by its digest
alone, so that two trees that share blobs share them in their samples too. A blob then stands for
as many others of its size as it takes to make the sums come out right.
"""

import base64
import binascii
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST_PARTS = 512
BLOCK_BYTES = 4096
_PART = struct.Struct(">QI")
_WHOLE_RANGE = 1 << 64
_MOST_BLOCKS = (1 << 32) - 1


class TracePart(NamedTuple):
    """One blob of a sample: the first 64 bits of its digest, and its blocks of 4 KiB."""

    id: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A run that wanted a tree. `parts` is empty where an earlier use has told them already.

    `own_seconds` is what making the tree takes with all its blobs here. `one_in` is how many
    blocks a sampled part stands for at least.
    """

    time: float
    tree: str
    files: int
    bytes: int
    own_bytes: int
    own_inodes: int
    own_seconds: float
    seconds_per_file: float
    seconds_per_byte: float
    way: str = ""
    one_in: int = 1
    parts: Sequence[TracePart] = field(default=())


class BadTraceError(ValueError):
    """A line that is no use of a tree."""


def sample(blobs: Iterable[TracePart]) -> tuple[tuple[TracePart, ...], int]:
    """At most about `MOST_PARTS` of them, and how many blocks each stands for at least."""
    kept = list(blobs)
    one_in = 1
    while len(kept) > MOST_PARTS:
        one_in *= 2
        kept = [part for part in kept if part.id * one_in < part.blocks * _WHOLE_RANGE]
        if all(part.blocks >= one_in for part in kept):
            break
    return tuple(kept), one_in


def encode(use: Use) -> str:
    return json.dumps(as_object(use), separators=(",", ":"))


def as_object(use: Use) -> dict[str, Any]:
    packed = b"".join(_PART.pack(part.id, min(part.blocks, _MOST_BLOCKS)) for part in use.parts)
    return {
        "time": round(use.time, 3),
        "tree": use.tree,
        "way": use.way,
        "files": use.files,
        "bytes": use.bytes,
        "own_bytes": use.own_bytes,
        "own_inodes": use.own_inodes,
        "own_seconds": float(f"{use.own_seconds:.4g}"),
        "seconds_per_file": float(f"{use.seconds_per_file:.4g}"),
        "seconds_per_byte": float(f"{use.seconds_per_byte:.4g}"),
        "one_in": use.one_in,
        "parts": base64.b64encode(packed).decode(),
    }


def decode(line: str) -> Use:
    """Raises BadTraceError."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadTraceError(f"no JSON: {line[:80]!r}") from error
    return from_object(found)


def from_object(found: Any) -> Use:
    """Raises BadTraceError."""
    try:
        packed = base64.b64decode(found["parts"], validate=True)
        use = Use(
            time=float(found["time"]),
            tree=str(found["tree"]),
            way=str(found["way"]),
            files=int(found["files"]),
            bytes=int(found["bytes"]),
            own_bytes=int(found["own_bytes"]),
            own_inodes=int(found["own_inodes"]),
            own_seconds=float(found["own_seconds"]),
            seconds_per_file=float(found["seconds_per_file"]),
            seconds_per_byte=float(found["seconds_per_byte"]),
            one_in=int(found["one_in"]),
            parts=tuple(TracePart(*part) for part in _PART.iter_unpack(packed)),
        )
    except (KeyError, TypeError, ValueError, OverflowError, struct.error, binascii.Error) as error:
        raise BadTraceError(f"no use of a tree: {error!r}") from error
    figures = (use.files, use.bytes, use.own_bytes, use.own_inodes, use.own_seconds)
    if min(*figures, use.seconds_per_file, use.seconds_per_byte) < 0 or use.one_in < 1:
        raise BadTraceError("a figure is below 0")
    return use

"""Trees: one directory each, as canonical JSON, named by the digest of exactly those bytes.

A tree lists its entries sorted by the bytes of their names. A directory entry carries the totals
of what is below it, so that the cost of a tree is known before it is walked. Names and link
targets are bytes to the kernel: those that are UTF-8 are written as text, the others as base64
under `raw`. In memory they are `str` as `os.fsdecode` makes it (surrogates for stray bytes).
"""

import base64
import binascii
import os
from collections.abc import Iterable, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Protocol

import msgspec

from executord.files.model import digests

MAX_TREE_BYTES = 256 << 20
MAX_NAME_BYTES = 255
MAX_TARGET_BYTES = 4095
_ENTRY_BYTES = 300
_RAW_MARK = b'"raw'


class Kind(StrEnum):
    FILE = "file"
    EXECUTABLE = "executable"
    LINK = "link"
    DIRECTORY = "directory"


class BadTreeError(ValueError):
    """Bytes that are no tree, or not in canonical form."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One name in a directory.

    `size` is in bytes: of the file, of the link's text, or of all files below a directory.
    `count` is the number of entries below a directory, at any depth. A link has a `target` and no
    digest. `raw` and `raw_target` exist in the written form only.
    """

    kind: Kind
    name: str = ""
    raw: str = ""
    digest: str = ""
    size: int = 0
    count: int = 0
    target: str = ""
    raw_target: str = ""

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY

    @property
    def is_file(self) -> bool:
        return self.kind is Kind.FILE or self.kind is Kind.EXECUTABLE

    @property
    def content(self) -> tuple[Kind, str, str]:
        """Equal for two entries that a user of the directory cannot tell apart."""
        return self.kind, self.digest, self.target


Tree = Sequence[Entry]


class TreeSource(Protocol):
    def tree(self, digest: str) -> Tree:
        """Raises FaultError where it is not to be had, or not what its digest promises."""
        ...


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entries: list[Entry]


_name = attrgetter("name")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Written)


def file_entry(name: str, digest: str, size: int, *, executable: bool) -> Entry:
    kind = Kind.EXECUTABLE if executable else Kind.FILE
    return Entry(kind=kind, name=name, digest=digest, size=size)


def link_entry(name: str, target: str) -> Entry:
    return Entry(kind=Kind.LINK, name=name, target=target, size=len(os.fsencode(target)))


def directory_entry(name: str, digest: str, entries: Iterable[Entry]) -> Entry:
    size, count = totals(entries)
    return Entry(kind=Kind.DIRECTORY, name=name, digest=digest, size=size, count=count)


def totals(entries: Iterable[Entry]) -> tuple[int, int]:
    """Bytes of all files below, and the number of all entries below."""
    size = count = 0
    for entry in entries:
        if entry.kind is not Kind.LINK:
            size += entry.size
        count += 1 + entry.count
    return size, count


def encode(entries: Iterable[Entry]) -> tuple[str, bytes]:
    """The tree's digest and its bytes. Raises BadTreeError for what cannot be a directory."""
    ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    _check(ordered)
    data = _encoder.encode(_Written([_to_written(entry) for entry in ordered]))
    return digests.of_bytes(data), data


def encode_listed(entries: Sequence[Entry]) -> tuple[str, bytes]:
    """As `encode`, quicker: of entries that were made here, of names that a directory has."""
    for entry in entries:
        name = entry.name
        if not name.isascii() or len(name) > MAX_NAME_BYTES or not entry.target.isascii():
            return encode(entries)
    data = _encoder.encode(_Written(sorted(entries, key=_name)))
    return digests.of_bytes(data), data


def decode(data: bytes) -> list[Entry]:
    """Raises BadTreeError. What comes back, encoded again, gives the same bytes."""
    if len(data) > MAX_TREE_BYTES:
        raise BadTreeError(f"a tree of {len(data)} bytes is too large")
    try:
        written = _decoder.decode(data)
        entries = [_from_written(entry) for entry in written.entries]
    except (msgspec.MsgspecError, RecursionError, binascii.Error, UnicodeError) as error:
        raise BadTreeError(f"not a tree: {error}") from error
    _check(entries)
    again = _encoder.encode(_Written([_to_written(entry) for entry in entries]))
    if again != data:
        raise BadTreeError("not in canonical form")
    return entries


def decode_checked(data: bytes) -> list[Entry]:
    """As `decode`, much quicker, of bytes that were checked before."""
    try:
        entries = _decoder.decode(data).entries
        if data.isascii() and _RAW_MARK not in data:
            return entries
        return [_from_written(entry) for entry in entries]
    except (msgspec.MsgspecError, RecursionError, binascii.Error, UnicodeError) as error:
        raise BadTreeError(f"not a tree: {error}") from error


def bytes_in_memory(tree: Tree) -> int:
    """What a decoded tree takes, near enough (CPython 3.11, measured with tracemalloc)."""
    return 64 + _ENTRY_BYTES * len(tree)


def check_name(name: str) -> None:
    """Raises BadTreeError for a name that is none, or leads out of its directory."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise BadTreeError(f"{name!r} cannot be a name in a directory")
    if len(name) * 4 > MAX_NAME_BYTES and len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise BadTreeError(f"the name {name[:40]!r}… is longer than {MAX_NAME_BYTES} bytes")


def _check(entries: Sequence[Entry]) -> None:
    before = b""
    for entry in entries:
        check_name(entry.name)
        name = os.fsencode(entry.name)
        if name <= before:
            raise BadTreeError(f"{entry.name!r} is there twice, or out of order")
        before = name
        _check_kind(entry)


def _check_kind(entry: Entry) -> None:
    if entry.size < 0 or entry.count < 0:
        raise BadTreeError(f"{entry.name!r} has a negative size")
    if entry.kind is Kind.LINK:
        target = os.fsencode(entry.target)
        if not target or b"\0" in target or len(target) > MAX_TARGET_BYTES:
            raise BadTreeError(f"the link {entry.name!r} has no usable target")
        if entry.digest or entry.count or entry.size != len(target):
            raise BadTreeError(f"the link {entry.name!r} has what only others have")
        return
    if entry.target or not digests.is_digest(entry.digest):
        raise BadTreeError(f"{entry.name!r} has no digest, or a link's target")
    if entry.count and entry.kind is not Kind.DIRECTORY:
        raise BadTreeError(f"the file {entry.name!r} has something below it")


def _to_written(entry: Entry) -> Entry:
    if entry.name.isascii() and entry.target.isascii():
        return entry
    name, raw = _split(entry.name)
    target, raw_target = _split(entry.target)
    if not raw and not raw_target and name == entry.name and target == entry.target:
        return entry
    return msgspec.structs.replace(entry, name=name, raw=raw, target=target, raw_target=raw_target)


def _from_written(entry: Entry) -> Entry:
    if not entry.raw and not entry.raw_target:
        if entry.name.isascii() and entry.target.isascii():
            return entry
        name, target = _decoded(entry.name), _decoded(entry.target)
    else:
        name, target = _joined(entry.name, entry.raw), _joined(entry.target, entry.raw_target)
    return msgspec.structs.replace(entry, name=name, raw="", target=target, raw_target="")


def _split(text: str) -> tuple[str, str]:
    data = os.fsencode(text)
    try:
        return data.decode(), ""
    except UnicodeDecodeError:
        return "", base64.b64encode(data).decode()


def _joined(text: str, raw: str) -> str:
    if not raw:
        return _decoded(text)
    if text:
        raise BadTreeError("a name is written in both ways")
    return os.fsdecode(base64.b64decode(raw, validate=True))


def _decoded(text: str) -> str:
    return os.fsdecode(text.encode())


EMPTY_TREE, EMPTY_TREE_BYTES = encode(())

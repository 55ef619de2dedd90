"""Revisions: a root tree with its parent, author, message and time, named by their digest."""

import msgspec

from executord.files.model import digests
from executord.ports import Revision

MAX_REVISION_BYTES = 64 << 10
_MAX_TEXT = 4096


class BadRevisionError(ValueError):
    """Bytes that are no revision."""


class _Written(msgspec.Struct, frozen=True, omit_defaults=True):
    tree: str
    parent: str = ""
    author: str = ""
    message: str = ""
    time: float = 0.0
    run: str = ""
    merged: str = ""
    mid_run: bool = False


_decoder = msgspec.json.Decoder(_Written)


def encode(revision: Revision) -> tuple[str, bytes]:
    """Its digest and its bytes. Texts are cut to what a revision may hold."""
    digests.hex_of(revision.tree)
    for parent in filter(None, (revision.parent, revision.merged)):
        digests.hex_of(parent)
    data = msgspec.json.encode(
        _Written(
            tree=revision.tree,
            parent=revision.parent,
            author=_tidy(revision.author),
            message=_tidy(revision.message),
            time=float(revision.time),
            run=_tidy(revision.run),
            merged=revision.merged,
            mid_run=revision.mid_run,
        )
    )
    return digests.of_bytes(data), data


def decode(data: bytes) -> Revision:
    """Raises BadRevisionError."""
    if len(data) > MAX_REVISION_BYTES:
        raise BadRevisionError(f"a revision of {len(data)} bytes is too large")
    try:
        written = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BadRevisionError(f"not a revision: {error}") from error
    if not digests.is_digest(written.tree):
        raise BadRevisionError("its tree is no digest")
    if written.parent and not digests.is_digest(written.parent):
        raise BadRevisionError("its parent is no digest")
    if written.merged and not digests.is_digest(written.merged):
        raise BadRevisionError("its second parent is no digest")
    return Revision(
        tree=written.tree,
        parent=written.parent,
        author=written.author,
        message=written.message,
        time=written.time,
        run=written.run,
        merged=written.merged,
        mid_run=written.mid_run,
    )


def _tidy(text: str) -> str:
    return text[:_MAX_TEXT].encode(errors="replace").decode()

"""What a run's next revision builds upon: its base, or what was stored while it went on.

    runs/<run id>/stored.json      the last of these, and its own ancestors that have not landed;
                                   below it the SHA-256 of that line

Written once the revision is in the store and before anything points to it, so that an end always
builds upon the last sync, whatever was killed in between, and is never in conflict with itself.

Where the note is damaged the store is asked, in which the run's own pointer is set before any head
moves: so whatever has landed is below it. What was noted and not pointed to yet is not built upon,
and nothing is lost by that, since the run's directory still has all that it changed.
"""

import hashlib
from pathlib import Path

import msgspec
import structlog

from executord.core.run import Run, Workspace
from executord.files.store.store import Store
from executord.files.system import disk

log = structlog.get_logger(__name__)

_MOST_LINE = 1000
_MOST_ASKED = 10_000


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """`line`: revisions, newest first; the last one is the run's base, or one that has landed."""

    tree: str
    line: tuple[str, ...]
    stored: bool = False

    @property
    def parent(self) -> str:
        return self.line[0]

    def then(self, revision: str, tree: str) -> "Origin":
        """After one more revision, of which nobody knows yet whether it will land."""
        line = (revision, *self.line)
        if len(line) > _MOST_LINE:
            line = (*line[: _MOST_LINE - 1], line[-1])
        return Origin(tree=tree, line=line, stored=True)

    def landed(self) -> "Origin":
        return Origin(tree=self.tree, line=self.line[:1], stored=self.stored)


def read_origin(home: Path, workspace: Workspace) -> Origin | None:
    """None where the note is damaged: ask the store then. Raises OSError."""
    try:
        data = (home / "stored.json").read_bytes()
    except FileNotFoundError:
        return _base(workspace)
    text, _, digest = data.partition(b"\n")
    if digest != _digest(text):
        log.warning("workspace.note_damaged", path=str(home / "stored.json"))
        return None
    return msgspec.json.decode(text, type=Origin)


def write_origin(home: Path, origin: Origin) -> None:
    text = msgspec.json.encode(origin)
    disk.write_whole(home / "stored.json", text + b"\n" + _digest(text), durable=True)


def ask_origin(store: Store, run: Run, workspace: Workspace) -> Origin:
    """What the run has left in the store since it began. Raises FaultError. Blocks."""
    last = revision = store.run_revision(run.assignment.project, run.id)
    line: list[str] = []
    while revision and revision != workspace.base_revision and len(line) < _MOST_ASKED:
        line.append(revision)
        revision = store.revision(revision).parent
    if not line or revision != workspace.base_revision:
        return _base(workspace)  # nothing, or what another run of this name has left
    return Origin(tree=store.revision(last).tree, line=(*line, revision), stored=True)


def _base(workspace: Workspace) -> Origin:
    return Origin(tree=workspace.tree, line=(workspace.base_revision,))


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()

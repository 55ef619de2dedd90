"""What a run's next revision builds upon: its base, or what was stored while it went on.

    runs/<run id>/stored.json      the last of these, and its own ancestors that have not landed

Written once the revision is in the store and before anything points to it, so that an end always
builds upon the last sync, whatever was killed in between, and is never in conflict with itself.
"""

from pathlib import Path

import msgspec

from executord.core.run import Workspace
from executord.files.system import disk

_MOST_LINE = 1000


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


def read_origin(home: Path, workspace: Workspace) -> Origin:
    """Raises OSError."""
    try:
        return msgspec.json.decode((home / "stored.json").read_bytes(), type=Origin)
    except FileNotFoundError:
        return Origin(tree=workspace.tree, line=(workspace.base_revision,))


def write_origin(home: Path, origin: Origin) -> None:
    disk.write_whole(home / "stored.json", msgspec.json.encode(origin), durable=True)

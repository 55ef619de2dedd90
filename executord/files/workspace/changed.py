"""What a run did to its working directory, whichever way that was made."""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from executord.files.model.trees import TreeSource
from executord.files.workspace.changes import Merged, ReadBase, TakeFile, merge


class Changed(Protocol):
    """Blocks. `top` is the directory that holds at least every file that the run has written."""

    @property
    def top(self) -> Path: ...

    def merge(
        self, base_tree: str, source: TreeSource, *, take_file: TakeFile, read_base: ReadBase
    ) -> Merged:
        """The tree as the run left it. `take_file` is asked for every regular file that may differ
        from the base, and for no other.

        Raises FaultError, MovedError (only while the run lives), OSError.
        """
        ...

    def wrote(self, name: str, base_tree: str, source: TreeSource) -> bool:
        """Whether the run itself wrote the regular file of that name, right in `top`."""
        ...


@dataclass(frozen=True, slots=True)
class UpperDirectory:
    """An overlay's upper directory: whatever is in it is the run's doing."""

    top: Path

    def merge(
        self, base_tree: str, source: TreeSource, *, take_file: TakeFile, read_base: ReadBase
    ) -> Merged:
        return merge(self.top, base_tree, source, take_file=take_file, read_base=read_base)

    def wrote(self, name: str, base_tree: str, source: TreeSource) -> bool:  # noqa: ARG002
        return is_regular(self.top / name)


def is_regular(path: Path) -> bool:
    """False also where it is not there."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False

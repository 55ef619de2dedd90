"""How one file gets from the cache into a run's directory."""

from dataclasses import dataclass
from typing import Protocol

from executord.files.model.trees import Entry, Kind
from executord.files.workspace.modes.mode import ModeName


@dataclass(frozen=True, slots=True)
class Place:
    """`entry` is to be made in the directory `dir_fd`; `path` is where that is in the project."""

    dir_fd: int
    path: str
    entry: Entry

    @property
    def mode(self) -> int:
        return 0o755 if self.entry.kind is Kind.EXECUTABLE else 0o644


class PlacedFiles(Protocol):
    """The files of one directory while it is made."""

    def place(self, blob: str, place: Place) -> bool:
        """From the blob at that path. True where the run may only read it.

        Raises FileNotFoundError where there is no such blob, OSError.
        """
        ...


class Placer(Protocol):
    @property
    def name(self) -> ModeName: ...

    def begin(self, entries: int) -> PlacedFiles:
        """For a new directory with that many entries at all depths together."""
        ...

    def new_bytes(self, size: int) -> int:
        """How much of files of so many bytes altogether the disk will have to take."""
        ...

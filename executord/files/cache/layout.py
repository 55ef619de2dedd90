"""Where the file cache keeps what, below one directory on one filesystem.

Folders whose contents have a form carry its version in their name. `tmp` and `trash` are emptied
at every start; whatever is found anywhere else is whole, since it was renamed into place.
"""

from dataclasses import dataclass
from pathlib import Path

from executord.files.system.disk import unique_name


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs-v1"

    @property
    def trees(self) -> Path:
        return self.root / "trees-v1"

    @property
    def revisions(self) -> Path:
        return self.root / "revisions-v1"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots-v1"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    def make(self) -> None:
        """Raises OSError. A run's user comes in through its overlay only, never through here."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for path in (
            self.blobs,
            self.trees,
            self.revisions,
            self.snapshots,
            self.runs,
            self.tmp,
            self.trash,
        ):
            path.mkdir(mode=0o700, exist_ok=True)

    def new_tmp(self) -> Path:
        return self.tmp / unique_name()

    def throw_away(self, path: Path) -> bool:
        """At once out of sight; the sweeper deletes it later. False where there is nothing."""
        try:
            path.rename(self.trash / unique_name())
        except FileNotFoundError:
            return False
        return True

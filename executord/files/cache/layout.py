"""Where the file cache keeps what, below one directory on one filesystem.

Folders whose contents have a form carry its version in their name. `tmp` and `trash` are emptied
at every start; whatever is found anywhere else is whole, since it was renamed into place.
"""

import errno
from dataclasses import dataclass
from pathlib import Path

from executord.files.system.disk import unique_name
from executord.ports import CacheKind


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs-v1"

    @property
    def read_only_blobs(self) -> Path:
        """In use instead of `blobs` where runs get links to them: see `modes.hardlink`."""
        return self.root / "blobs-ro-v1"

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
    def layers(self) -> Path:
        return self.root / "layers-v1"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def partials(self) -> Path:
        """Large blobs as far as they are fetched."""
        return self.root / "partial-v1"

    @property
    def pack_indexes(self) -> Path:
        return self.root / "packs-v1"

    @property
    def known_stores(self) -> Path:
        return self.root / "stores.json"

    @property
    def beside(self) -> dict[CacheKind, Path]:
        """Flat folders of what nothing links to and what can always be fetched again."""
        return {"partial_blobs": self.partials, "pack_indexes": self.pack_indexes}

    @property
    def runs_tmp(self) -> Path:
        """What is made here can be renamed into `runs`."""
        own = self.runs / ".tmp"
        return own if own.is_dir() else self.tmp

    def trashes(self) -> tuple[Path, ...]:
        own = self.runs / ".trash"
        return (self.trash, own) if own.is_dir() else (self.trash,)

    def make_room_for_runs(self) -> None:
        """Where `runs` is a mount of its own nothing can be renamed into it, and it gets a `tmp`
        and a `trash` too. Raises OSError.
        """
        nothing = unique_name()
        try:
            (self.tmp / nothing).rename(self.runs / nothing)  # asks, and needs no room to ask
        except FileNotFoundError:
            for name in (".tmp", ".trash"):
                if (self.runs / name).is_dir():
                    (self.runs / name).rename(self.trash / unique_name())
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            for name in (".tmp", ".trash"):
                (self.runs / name).mkdir(mode=0o700, exist_ok=True)

    def make(self) -> None:
        """Raises OSError. A run's user comes in through its overlay only, never through here."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        for path in (
            self.blobs,
            self.trees,
            self.revisions,
            self.snapshots,
            self.layers,
            self.runs,
            self.tmp,
            self.trash,
            self.quarantine,
        ):
            path.mkdir(mode=0o700, exist_ok=True)
        self.make_room_for_runs()

    def new_tmp(self) -> Path:
        return self.tmp / unique_name()

    def throw_away(self, path: Path) -> bool:
        """At once out of sight; the sweeper deletes it later. False where there is nothing."""
        try:
            path.rename(self.trash / unique_name())
        except FileNotFoundError:
            return False
        except OSError as error:
            own = self.runs / ".trash"
            if error.errno != errno.EXDEV or not own.is_dir():
                raise
            path.rename(own / unique_name())
        return True

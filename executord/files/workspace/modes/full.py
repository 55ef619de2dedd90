"""A directory of the run's own that holds all of its files, and how to read what became of it.

    runs/<run id>/files    what the container sees, through a volume that the engine binds
                  marks    how each file looked when it was made

Reading it costs a walk over everything; only what differs from its mark is hashed.
"""

from dataclasses import dataclass
from pathlib import Path

from executord.files.model.trees import TreeSource
from executord.files.workspace.changed import Changed, is_regular
from executord.files.workspace.changes import Found, Merged, ReadBase, TakeFile, merge
from executord.files.workspace.modes.marks import Marks
from executord.files.workspace.modes.mode import ModeName, RunVolumes, Volume
from executord.files.workspace.modes.mounted import Mount
from executord.files.workspace.modes.placing import Placer


def files_of(home: Path) -> Path:
    return home / "files"


def marks_of(home: Path) -> Path:
    return home / "marks"


@dataclass(frozen=True, slots=True)
class WholeDirectory:
    """`run_user` is the user id of the run."""

    top: Path
    marks: Path
    run_user: int

    def merge(
        self, base_tree: str, source: TreeSource, *, take_file: TakeFile, read_base: ReadBase
    ) -> Merged:
        marks = Marks(self.marks, base_tree, source, self.run_user)

        def take(found: Found) -> tuple[str, int]:
            base = found.base
            if base is not None and marks.is_untouched(found.path, found.facts):
                return base.digest, base.size
            return take_file(found)

        try:
            return merge(
                self.top, base_tree, source, take_file=take, read_base=read_base, whole=True
            )
        finally:
            marks.close()

    def wrote(self, name: str, base_tree: str, source: TreeSource) -> bool:
        path = self.top / name
        if not is_regular(path):
            return False
        marks = Marks(self.marks, base_tree, source, self.run_user)
        try:
            return not marks.is_untouched(name, path.lstat())
        except FileNotFoundError:
            return False
        finally:
            marks.close()


@dataclass(frozen=True, slots=True)
class FullDirectory:
    """`placer` says how a file gets there; `owner` is the user and group of the run."""

    placer: Placer
    owner: tuple[int, int]

    @property
    def name(self) -> ModeName:
        return self.placer.name

    @property
    def on_snapshot(self) -> bool:
        return False

    async def create_volume(self, volumes: RunVolumes, home: Path, volume: Volume) -> None:
        await volumes.create_bind_volume(
            volume.name, directory=files_of(home), labels=volume.labels
        )

    def changed(self, home: Path) -> Changed:
        return WholeDirectory(files_of(home), marks_of(home), self.owner[0])

    def is_mounted(self, home: Path, mount: Mount) -> bool:
        """A mount names its directory as its file system does, which may not be how we do."""
        return mount.root.endswith(f"/{home.name}/{files_of(home).name}")

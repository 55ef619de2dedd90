"""What every way of making a run's working directory has in common.

    overlay    an empty directory over a snapshot, mounted by the engine: costs what is changed
    reflink    private copies that share their blocks with the cache
    hardlink   links to blobs that the run may only read, private copies of what it may write
    copy       private copies

The last three fill a directory of the run's own. Whichever it is, the container gets one named
volume, and what the run did comes back as the same `Merged`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from executord.files.workspace.changed import Changed
from executord.files.workspace.modes.mounted import Mount
from executord.ports import WorkspaceMode

ModeName = WorkspaceMode

BEST_FIRST: tuple[ModeName, ...] = ("overlay", "reflink", "hardlink", "copy")


class RunVolumes(Protocol):
    """The part of the engine that is needed here."""

    async def create_overlay_volume(
        self,
        name: str,
        *,
        lower: Sequence[Path],
        upper: Path,
        work: Path,
        labels: Mapping[str, str],
    ) -> None: ...

    async def create_bind_volume(
        self, name: str, *, directory: Path, labels: Mapping[str, str]
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """`lower` is what the snapshot consists of, top first; () where there is none."""

    name: str
    labels: Mapping[str, str]
    lower: Sequence[Path] = ()


class Mode(Protocol):
    """`home` is the run's own folder: what a mode puts there is known to that mode alone."""

    @property
    def name(self) -> ModeName: ...

    @property
    def on_snapshot(self) -> bool:
        """Whether the tree has to be there as a snapshot; else `fill` needs its blobs alone."""
        ...

    async def create_volume(self, volumes: RunVolumes, home: Path, volume: Volume) -> None: ...

    def changed(self, home: Path) -> Changed: ...

    def is_mounted(self, home: Path, mount: Mount) -> bool:
        """Whether that is what the run's container should have as its working directory."""
        ...

"""An overlay that the engine mounts: a snapshot below, the run's own upper directory above."""

from dataclasses import dataclass
from pathlib import Path

from executord.files.system import disk
from executord.files.workspace.changed import Changed, UpperDirectory
from executord.files.workspace.modes.mode import ModeName, RunVolumes, Volume
from executord.files.workspace.modes.mounted import Mount


def upper_of(home: Path) -> Path:
    return home / "upper"


def work_of(home: Path) -> Path:
    return home / "work"


@dataclass(frozen=True, slots=True)
class Overlay:
    """`owner` is the user and group of the run."""

    owner: tuple[int, int]

    @property
    def name(self) -> ModeName:
        return "overlay"

    @property
    def on_snapshot(self) -> bool:
        return True

    def fill(self, home: Path) -> None:
        upper = upper_of(home)
        upper.mkdir()
        upper.chmod(0o755)
        disk.chown_if_needed(str(upper), self.owner)
        work_of(home).mkdir(mode=0o700)

    async def create_volume(self, volumes: RunVolumes, home: Path, volume: Volume) -> None:
        await volumes.create_overlay_volume(
            volume.name,
            lower=volume.lower,
            upper=upper_of(home),
            work=work_of(home),
            labels=volume.labels,
        )

    def changed(self, home: Path) -> Changed:
        return UpperDirectory(upper_of(home))

    def is_mounted(self, home: Path, mount: Mount) -> bool:
        return mount.file_system == "overlay" and f"upperdir={upper_of(home)}" in mount.options

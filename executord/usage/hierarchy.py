"""Where control groups lie on this host, by process and by name."""

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from executord.usage.texts import GroupMount, group_mounts, process_groups

_BUSY = (errno.EBUSY, errno.ENOTEMPTY)

Group = Mapping[str, Path]
"""Directories of one group by controller; with version 2 there is one, under ""."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """`version` is the one the engine uses: a host may have both mounted."""

    mounts: tuple[GroupMount, ...]
    version: int
    proc: Path = Path("/proc")

    @classmethod
    def read(cls, *, version: int, proc: Path = Path("/proc")) -> "Hierarchy":
        """Blocks. OSError."""
        text = (proc / "self" / "mountinfo").read_bytes()
        return cls(group_mounts(text), version, proc)

    def of_process(self, pid: int) -> Group:
        """Empty when there is no such process. Blocks."""
        try:
            paths = process_groups((self.proc / str(pid) / "cgroup").read_bytes())
        except OSError:
            return {}
        found: dict[str, Path] = {}
        for mount in self._in_use():
            for controller in mount.controllers or ("",):
                below = _below(paths.get(controller, ""), mount.root)
                if below is not None:
                    found[controller] = Path(mount.mount_point) / below
        return found

    def named(self, path: str) -> Group:
        """The group at `path` below each hierarchy's root, where it exists. Blocks."""
        found: dict[str, Path] = {}
        for mount in self._in_use():
            directory = Path(mount.mount_point) / path
            if directory.is_dir():
                found.update(dict.fromkeys(mount.controllers or ("",), directory))
        return found

    def everywhere(self, path: str) -> Iterator[Path]:
        """The group at `path` in every hierarchy, also those that are of no use here. Blocks."""
        for mount in self.mounts:
            directory = Path(mount.mount_point) / path
            if directory.is_dir():
                yield directory

    def _in_use(self) -> Iterator[GroupMount]:
        return (mount for mount in self.mounts if mount.version == self.version)


def remove_group(directory: Path, *, inside: bool = True) -> bool:
    """Remove a group, and first the empty ones `inside` it; False while something is left in it.

    Blocks. OSError where it may not be removed at all.
    """
    try:
        if inside:
            for entry in os.scandir(directory):
                if entry.is_dir(follow_symlinks=False):
                    remove_group(Path(entry.path))
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def _below(path: str, root: str) -> str | None:
    """`path` as seen from a mount that shows `root`; None when it lies outside."""
    if not path or "/.." in path:
        return None
    if root == "/":
        return path.lstrip("/")
    if path == root or path.startswith(f"{root}/"):
        return path[len(root) :].lstrip("/")
    return None

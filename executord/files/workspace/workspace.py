"""A run's working directory, made in one of several ways: see `modes.mode`.

    runs/<run id>/upper, work      the run's own layers of an overlay
                  files, marks     or its whole directory
                  lease.json       which tree and revision it stands on, and which way it was made

While a lease is there, nothing that the run stands on may be evicted.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from executord.core.reasons import Reason
from executord.core.run import Workspace
from executord.files.cache.layout import Layout
from executord.files.faults import fault
from executord.files.system import disk
from executord.files.workspace.changed import Changed
from executord.files.workspace.modes.choice import Modes
from executord.files.workspace.modes.mode import Mode
from executord.files.workspace.modes.mounted import mounts_of
from executord.files.workspace.modes.overlay import upper_of

_Filled = TypeVar("_Filled")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_OPTION_BYTES = 3400
_SEPARATORS = ("\\", ":", ",", "\0")


class Volumes(Protocol):
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

    async def create_read_only_volume(
        self, name: str, *, lower: Sequence[Path], labels: Mapping[str, str]
    ) -> None: ...

    async def remove_volume(self, name: str) -> None: ...


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """`kept`: the run is over, only its changes are kept; nothing is pinned any more."""

    run: str
    tree: str
    base_revision: str
    volume: str
    way: str
    made_at: float
    mode: str = "overlay"
    kept: bool = False
    kept_at: float = 0.0
    dataset_trees: tuple[str, ...] = ()
    dataset_volumes: tuple[str, ...] = ()


def check_run_id(run_id: str) -> None:
    """It becomes a folder, a volume and part of a mount's options. Raises FaultError."""
    if not _RUN_ID.fullmatch(run_id):
        raise fault(
            Reason.WORKSPACE_FAILED, f"The run id {run_id[:140]!r} cannot be a directory's name."
        )


class Workspaces:
    """The directories; its methods block. The volumes are made and removed by `ProjectFiles`."""

    def __init__(self, layout: Layout, modes: Modes, instance: str) -> None:
        self._layout = layout
        self.modes = modes
        self.instance = instance

    def volume_name(self, run_id: str) -> str:
        return f"executord-{self.instance}-{run_id}"

    def labels(self, run_id: str) -> dict[str, str]:
        return {"executord.instance": self.instance, "executord.run": run_id}

    def home(self, run_id: str) -> Path:
        check_run_id(run_id)
        return self._layout.runs / run_id

    def upper(self, run_id: str) -> Path:
        return upper_of(self.home(run_id))

    def mode_of(self, run_id: str) -> Mode:
        """The one that the run's directory was made in, which may not be that of today."""
        lease = self.lease(run_id)
        return self.modes.of(lease.mode if lease is not None else "overlay")

    def check_mounted(self, run_id: str, pid: int) -> None:
        """Raises WORKSPACE_FAILED where the process lives without the run's directory. Nothing is
        known of a process that has ended, or that only others may look at.
        """
        mode, home = self.mode_of(run_id), self.home(run_id)
        try:
            mounts = mounts_of(pid)
        except OSError:
            return
        if not any(mode.is_mounted(home, mount) for mount in mounts):
            raise fault(
                Reason.WORKSPACE_FAILED,
                f"The container of run {run_id} was started without the run's working directory: "
                f"the engine did not mount {home}.",
                mode=mode.name,
            )

    def changed(self, run_id: str) -> Changed:
        """How to read what the run has done to its directory."""
        return self.mode_of(run_id).changed(self.home(run_id))

    def exists(self, run_id: str) -> bool:
        return self.home(run_id).is_dir()

    def make(self, run_id: str, workspace: Workspace, fill: Callable[[Path], _Filled]) -> _Filled:
        """All or nothing; the lease is durable. Nothing of that run may be there. `fill` gets the
        folder that becomes the run's, and what it gives is given back. Raises its faults, OSError.
        """
        aside = self._layout.runs_tmp / disk.unique_name()
        aside.mkdir(mode=0o700)
        try:
            filled = fill(aside)
            lease = Lease(
                run=run_id,
                tree=workspace.tree,
                base_revision=workspace.base_revision,
                volume=workspace.volume,
                way=workspace.way,
                mode=workspace.mode,
                made_at=time.time(),
                dataset_trees=tuple(dataset.tree for dataset in workspace.datasets),
                dataset_volumes=tuple(
                    dataset.volume for dataset in workspace.datasets if dataset.volume
                ),
            )
            disk.write_new(aside / "lease.json", (msgspec.json.encode(lease),), durable=True)
            aside.rename(self.home(run_id))
        except BaseException:
            self._layout.throw_away(aside)
            raise
        return filled

    def remove(self, run_id: str) -> None:
        self._layout.throw_away(self.home(run_id))

    def keep_without_lease(self, run_id: str) -> None:
        """Its changes stay, but nothing is pinned for it any more."""
        lease = self.lease(run_id)
        if lease is None or lease.kept:
            return
        kept = msgspec.structs.replace(lease, kept=True, kept_at=time.time())
        disk.write_whole(self.home(run_id) / "lease.json", msgspec.json.encode(kept), durable=True)

    def lease(self, run_id: str) -> Lease | None:
        try:
            data = (self.home(run_id) / "lease.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(data, type=Lease)
        except (msgspec.MsgspecError, UnicodeError):
            return None

    def leases(self) -> list[Lease]:
        names = os.listdir(self._layout.runs)  # noqa: PTH208 - names are enough
        found = (self.lease(name) for name in names if _RUN_ID.fullmatch(name))
        return [lease for lease in found if lease is not None]

    def count(self) -> int:
        names = os.listdir(self._layout.runs)  # noqa: PTH208 - names are enough
        return sum(_RUN_ID.fullmatch(name) is not None for name in names)


def check_mountable(root: Path) -> None:
    """Paths below `root` have to fit into a mount's options. Raises FaultError."""
    text = str(root)
    if not root.is_absolute() or any(mark in text for mark in _SEPARATORS):
        raise fault(
            Reason.WORKSPACE_FAILED,
            f"The state directory {text!r} cannot be mounted: it has to be a whole path without "
            "backslash, colon or comma.",
        )
    longest = len(os.fsencode(text)) * 3 + 128 * 2 + 200
    if longest > _MAX_OPTION_BYTES:
        raise fault(
            Reason.WORKSPACE_FAILED, f"The path of the state directory is too long: {text[:80]}…"
        )

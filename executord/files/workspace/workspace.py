"""A run's working directory: its snapshot below, what it changes above, mounted by the engine.

    runs/<run id>/upper, work      the run's own layers
                  lease.json       which tree and revision it stands on

While a lease is there, nothing that the run stands on may be evicted.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from executord.core.reasons import Reason
from executord.core.run import Workspace
from executord.files.cache.layout import Layout
from executord.files.faults import fault
from executord.files.system import disk

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

    async def remove_volume(self, name: str) -> None: ...


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """`kept`: the run is over, only its changes are kept; nothing is pinned any more."""

    run: str
    tree: str
    base_revision: str
    volume: str
    way: str
    made_at: float
    kept: bool = False


def check_run_id(run_id: str) -> None:
    """It becomes a folder, a volume and part of a mount's options. Raises FaultError."""
    if not _RUN_ID.fullmatch(run_id):
        raise fault(
            Reason.WORKSPACE_FAILED, f"The run id {run_id[:140]!r} cannot be a directory's name."
        )


class Workspaces:
    """The directories; its methods block. The volumes are made and removed by `ProjectFiles`."""

    def __init__(self, layout: Layout, owner: tuple[int, int], instance: str) -> None:
        self._layout = layout
        self._owner = owner
        self._instance = instance

    def volume_name(self, run_id: str) -> str:
        return f"executord-{self._instance}-{run_id}"

    def labels(self, run_id: str) -> dict[str, str]:
        return {"executord.instance": self._instance, "executord.run": run_id}

    def home(self, run_id: str) -> Path:
        check_run_id(run_id)
        return self._layout.runs / run_id

    def upper(self, run_id: str) -> Path:
        return self.home(run_id) / "upper"

    def work(self, run_id: str) -> Path:
        return self.home(run_id) / "work"

    def exists(self, run_id: str) -> bool:
        return self.home(run_id).is_dir()

    def make(self, run_id: str, workspace: Workspace) -> None:
        """All or nothing; the lease is durable. Nothing of that run may be there. OSError."""
        aside = self._layout.new_tmp()
        aside.mkdir(mode=0o700)
        try:
            upper = aside / "upper"
            upper.mkdir()
            upper.chmod(0o755)
            disk.chown_if_needed(str(upper), self._owner)
            (aside / "work").mkdir(mode=0o700)
            lease = Lease(
                run=run_id,
                tree=workspace.tree,
                base_revision=workspace.base_revision,
                volume=workspace.volume,
                way=workspace.way,
                made_at=time.time(),
            )
            disk.write_new(aside / "lease.json", (msgspec.json.encode(lease),), durable=True)
            aside.rename(self.home(run_id))
        except BaseException:
            self._layout.throw_away(aside)
            raise

    def remove(self, run_id: str) -> None:
        self._layout.throw_away(self.home(run_id))

    def keep_without_lease(self, run_id: str) -> None:
        """Its changes stay, but nothing is pinned for it any more."""
        lease = self.lease(run_id)
        if lease is None or lease.kept:
            return
        kept = msgspec.structs.replace(lease, kept=True)
        disk.write_whole(self.home(run_id) / "lease.json", msgspec.json.encode(kept), durable=True)

    def lease(self, run_id: str) -> Lease | None:
        try:
            data = (self.home(run_id) / "lease.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(data, type=Lease)
        except msgspec.MsgspecError:
            return None

    def leases(self) -> list[Lease]:
        names = os.listdir(self._layout.runs)  # noqa: PTH208 - names are enough
        found = (self.lease(name) for name in names if _RUN_ID.fullmatch(name))
        return [lease for lease in found if lease is not None]

    def count(self) -> int:
        return len(os.listdir(self._layout.runs))  # noqa: PTH208 - names are enough


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

"""The four ways side by side, and the one that new runs get."""

import os
from collections.abc import Sequence

from executord.core.reasons import Reason
from executord.files.faults import fault
from executord.files.model import ignore
from executord.files.workspace.modes.copy import Copies
from executord.files.workspace.modes.full import FullDirectory
from executord.files.workspace.modes.hardlink import Hardlinks
from executord.files.workspace.modes.mode import BEST_FIRST, Mode, ModeName
from executord.files.workspace.modes.overlay import Overlay
from executord.files.workspace.modes.probe import Probe
from executord.ports import WorkspaceModes


class Modes:
    """`wanted` is None for the best that works. `owner` is the run's user and group, `writable`
    gitignore patterns of what a run may write where it gets links. Nothing is chosen at first.
    """

    def __init__(
        self, *, wanted: ModeName | None, owner: tuple[int, int], writable: Sequence[str]
    ) -> None:
        self._wanted = wanted
        keeper = (os.geteuid(), os.getegid())
        patterns = ignore.parse("\n".join(writable).encode(errors="surrogateescape"))
        self.overlay = Overlay(owner)
        self._modes: dict[str, Overlay | FullDirectory] = {
            "overlay": self.overlay,
            "reflink": FullDirectory(Copies("reflink", owner), owner),
            "hardlink": FullDirectory(Hardlinks(owner, keeper, patterns), owner),
            "copy": FullDirectory(Copies("copy", owner), owner),
        }
        self._report: WorkspaceModes | None = None

    def choose(self, probe: Probe) -> None:
        """Raises FaultError WORKSPACE_FAILED where the wanted one does not work, OSError."""
        self._report = probe.choose(self._wanted)

    @property
    def report(self) -> WorkspaceModes:
        assert self._report is not None, "nothing has been chosen yet"
        return self._report

    @property
    def chosen(self) -> Overlay | FullDirectory:
        return self._modes[self.report.chosen]

    @property
    def why_not_better(self) -> str:
        """What became of the ways that would cost a run less."""
        report = self.report
        if report.forced:
            return "set by files.mode"
        better = report.verdicts[: BEST_FIRST.index(report.chosen)]
        return "; ".join(f"no {verdict.mode}: {verdict.why}" for verdict in better)

    def of(self, name: str) -> Mode:
        """Raises FaultError for a way that only another version knows."""
        mode = self._modes.get(name)
        if mode is None:
            raise fault(
                Reason.WORKSPACE_FAILED,
                f"A working directory was made in an unknown way, {name!r}.",
            )
        return mode

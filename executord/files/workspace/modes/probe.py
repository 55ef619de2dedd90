"""Which ways of making a working directory work here: each is tried, in the very folders."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from executord.core.reasons import Reason
from executord.files.cache.layout import Layout
from executord.files.faults import fault, is_full
from executord.files.system import disk
from executord.files.workspace.modes.mode import BEST_FIRST, ModeName
from executord.files.workspace.modes.probe_overlay import why_not_overlay
from executord.ports import ModeVerdict, WorkspaceModes

log = structlog.get_logger(__name__)

_MENDS: dict[ModeName, str] = {
    "overlay": "Put `node.state_dir` on ext4, XFS or btrfs, and not on top of an overlay",
    "reflink": "Put `node.state_dir` as a whole on XFS (made with reflink=1) or btrfs",
    "hardlink": "Put `node.state_dir` as a whole on one file system, and let `runs.user` be "
    "another than the daemon's",
    "copy": "See to it that the daemon may write below `node.state_dir`",
}


class Probe:
    """Blocks. `run_user` is the user id of runs; `rootless` says so of the engine."""

    def __init__(self, layout: Layout, *, run_user: int, rootless: bool) -> None:
        self._layout = layout
        self._run_user = run_user
        self._rootless = rootless

    def choose(self, wanted: ModeName | None) -> WorkspaceModes:
        """The best one, or the one that is wanted: then raises WORKSPACE_FAILED where it does not
        work. OSError where not even the trying does.
        """
        verdicts = tuple(self._try(mode) for mode in BEST_FIRST)
        works = {verdict.mode for verdict in verdicts if verdict.works}
        if wanted is not None and wanted not in works:
            why = next(verdict.why for verdict in verdicts if verdict.mode == wanted)
            raise _cannot(f'`files.mode` is "{wanted}", but {why}.', wanted, works)
        chosen = wanted or next((mode for mode in BEST_FIRST if mode in works), None)
        if chosen is None:
            why = "; ".join(f"{verdict.mode}: {verdict.why}" for verdict in verdicts)
            raise _cannot(f"No way to make a working directory works: {why}.", "copy", works)
        modes = WorkspaceModes(chosen=chosen, forced=wanted is not None, verdicts=verdicts)
        log.info(
            "workspaces.mode_chosen",
            mode=chosen,
            forced=modes.forced,
            rejected={verdict.mode: verdict.why for verdict in verdicts if not verdict.works},
        )
        return modes

    def _try(self, mode: ModeName) -> ModeVerdict:
        tries: dict[ModeName, Callable[[], str]] = {
            "overlay": self._overlay,
            "reflink": self._reflink,
            "hardlink": self._hardlink,
            "copy": self._copy,
        }
        try:
            why = tries[mode]()
        except OSError as error:
            if not is_full(error):
                raise
            log.warning("workspaces.mode_not_tried", mode=mode, why="the disk is full")
            why = ""
        return ModeVerdict(mode=mode, works=not why, why=why)

    def _overlay(self) -> str:
        layout = self._layout
        return why_not_overlay(layout.tmp, layout.runs_tmp, rootless=self._rootless)

    def _reflink(self) -> str:
        def clone(source: Path, target: Path) -> None:
            disk.clone_file(source, target)

        return self._with_file("blocks cannot be shared (FICLONE) from the cache to runs", clone)

    def _hardlink(self) -> str:
        if self._run_user == os.geteuid():
            return (
                "the daemon runs as the user of runs, who could write what is linked through "
                "other names"
            )

        def link(source: Path, target: Path) -> None:
            os.link(source, target)

        return self._with_file("files of the cache cannot be linked into runs", link)

    def _copy(self) -> str:
        def copy(source: Path, target: Path) -> None:
            target.write_bytes(source.read_bytes())

        return self._with_file("files cannot be written", copy)

    def _with_file(self, what: str, work: Callable[[Path, Path], None]) -> str:
        """Why it cannot be done with a file of the cache and one of the runs'."""
        source, target = self._layout.new_tmp(), self._layout.runs_tmp / disk.unique_name()
        source.write_bytes(bytes(8192))
        try:
            work(source, target)
        except OSError as error:
            return f"{what}: {error.strerror}"
        else:
            return ""
        finally:
            source.unlink()
            target.unlink(missing_ok=True)


def _cannot(sentence: str, mode: ModeName, works: Sequence[ModeName] | set[ModeName]) -> Exception:
    working = ", ".join(f'"{each}"' for each in BEST_FIRST if each in works)
    others = f', or set `files.mode` to "auto" (what works here: {working})' if working else ""
    return fault(Reason.WORKSPACE_FAILED, f"{sentence} {_MENDS[mode]}{others}.", mode=mode)

"""
Removes what set-up made: `.venv` and caches in the clone, then the engine and its folder.

    python -m tests.setup.clean
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup.engine import OwnEngine
from tests.setup.sharing import Sharing
from tests.setup.state import (
    CLONE,
    SetupError,
    carry_out,
    dev_folder_path,
    locked,
    open_dev_folder,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

MADE_IN_CLONE = (
    ".venv",
    ".hypothesis",
    ".import_linter_cache",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "build",
    "dist",
)


def clean_clone(clone: Path) -> None:
    say("removing .venv and caches")
    for name in MADE_IN_CLONE:
        shutil.rmtree(clone / name, ignore_errors=True)
    for part in ("executord", "tests"):
        for cache in sorted((clone / part).rglob("__pycache__")):
            shutil.rmtree(cache, ignore_errors=True)


def clean_dev_folder() -> None:
    """Stop the engine and remove the folder; leave both while somebody uses them."""
    if not dev_folder_path().exists():
        return
    folder = open_dev_folder()
    with Sharing(folder).alone() as alone:
        if not alone:
            raise SetupError(
                f"{folder.root} stays: another make uses its engine; wait for it, then try again"
            )
        OwnEngine(folder).stop()
        say(f"removing {folder.root}")
        with locked(folder.lock_file("images")):
            remove_tree(folder.root)


def remove_tree(root: Path) -> None:
    """Unmount what is mounted below, innermost first; remove only if nothing is any more."""
    for point in mounts_below(root, _mountinfo()):
        subprocess.run(["umount", str(point)], check=False)
    still = mounts_below(root, _mountinfo())
    if still:
        raise SetupError(f"{still[0]} is still mounted and in use; unmount it, then try again")
    done = subprocess.run(["rm", "-rf", "--one-file-system", "--", str(root)], check=False)
    if done.returncode != 0:
        raise SetupError(f"cannot remove all of {root}; remove what is left of it by hand")


def mounts_below(root: Path, mountinfo: Iterable[str]) -> list[Path]:
    """Give the mount points in the folder, deepest first, from the lines of mountinfo."""
    points = [Path(_unescape(line.split()[4])) for line in mountinfo]
    inside = [point for point in points if point.is_relative_to(root)]
    return sorted(inside, key=lambda point: len(point.parts), reverse=True)


def _mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def _unescape(name: str) -> str:
    """The kernel writes space, tab, newline and backslash in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


def clean() -> int:
    with locked(CLONE / "Makefile"):
        clean_clone(CLONE)
    clean_dev_folder()
    return 0


if __name__ == "__main__":
    sys.exit(carry_out(clean))

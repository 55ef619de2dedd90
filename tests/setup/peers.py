"""
What the benchmarks compare with, where it is not here yet.

    python -m tests.setup.peers
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from tests.setup.apt import install
from tests.setup.state import carry_out, open_dev_folder, say
from tests.setup.venv import call, have_ensurepip

if TYPE_CHECKING:
    from pathlib import Path

DEBIAN = ("rsync", "git", "ostree", "restic")
DVC = "dvc==3.67.1"


def install_peers() -> int:
    missing = [name for name in DEBIAN if shutil.which(name) is None]
    if missing:
        install(missing)
    _install_dvc(open_dev_folder().root / "peers" / DVC)
    return 0


def _install_dvc(home: Path) -> None:
    """In an environment of its own: its dependencies are not ours. Linked in when it is whole."""
    program = home.parent / "dvc"
    if os.access(program, os.X_OK) and program.resolve().parents[1] == home:
        return
    have_ensurepip()
    say(f"installing {DVC}")
    shutil.rmtree(home, ignore_errors=True)
    call([sys.executable, "-m", "venv", str(home)], "make room on the disk, then try again")
    options = ["--quiet", "--no-input", "--disable-pip-version-check"]
    call(
        [str(home / "bin" / "python"), "-m", "pip", "install", *options, DVC],
        "see to it that pip reaches its package index (PIP_INDEX_URL names another)",
    )
    program.unlink(missing_ok=True)
    program.symlink_to(home / "bin" / "dvc")


if __name__ == "__main__":
    sys.exit(carry_out(install_peers))

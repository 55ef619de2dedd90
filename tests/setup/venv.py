"""
Makes `.venv` from the lock file, and the project into it; both again only when they changed.

    python -m tests.setup.venv

`.venv/made-from` says what it was made of, each part once it is done: what it does not name is
made again. The clone's Makefile serves as the lock among parallel invocations.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

from tests.setup import apt
from tests.setup.state import CLONE, SetupError, carry_out, locked, say

if TYPE_CHECKING:
    from collections.abc import Sequence

VENV = CLONE / ".venv"
MADE_FROM = VENV / "made-from"
REQUIREMENTS = CLONE / "tests" / "requirements.txt"
PROJECT = CLONE / "pyproject.toml"
TAIL_LINES = 15


def ensure() -> int:
    wanted = {"packages": _packages_key(), "project": _project_key()}
    with locked(CLONE / "Makefile"):
        made = _made_from()
        if made == wanted:
            return 0
        if made.get("packages") != wanted["packages"]:
            _make_venv()
        MADE_FROM.write_text(json.dumps({"packages": wanted["packages"]}))
        _install_project()
        MADE_FROM.write_text(json.dumps(wanted))
    return 0


def _packages_key() -> str:
    """A digest of the lock, of this Python, and of the place, which scripts in it name."""
    parts = (REQUIREMENTS.read_bytes(), sys.version.encode(), os.fsencode(VENV))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _project_key() -> str:
    """A digest of what the installed project's metadata and scripts come from."""
    settings = tomllib.loads(PROJECT.read_text())
    said = {name: settings.get(name) for name in ("project", "build-system")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _made_from() -> dict[str, str]:
    if not os.access(VENV / "bin" / "python", os.X_OK):
        return {}
    try:
        found = json.loads(MADE_FROM.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _make_venv() -> None:
    have_ensurepip()
    say("making .venv with the packages of tests/requirements.txt")
    shutil.rmtree(VENV, ignore_errors=True)
    call([sys.executable, "-m", "venv", str(VENV)], "make room on the disk, then try again")
    _pip(
        ["--require-hashes", "--requirement", str(REQUIREMENTS)],
        "see to it that pip reaches its package index (PIP_INDEX_URL names another)",
    )


def _install_project() -> None:
    say("installing the project into .venv")
    _pip(
        ["--no-deps", "--no-build-isolation", "--editable", str(CLONE)],
        "mend what it names in pyproject.toml",
    )


def _pip(arguments: Sequence[str], advice: str) -> None:
    options = ["--quiet", "--no-input", "--disable-pip-version-check"]
    call([str(VENV / "bin" / "python"), "-m", "pip", "install", *options, *arguments], advice)


def have_ensurepip() -> None:
    """Debian ships venv without the part that puts pip in; python3-venv brings it."""
    if _can_make_venvs():
        return
    if os.geteuid() != 0:
        raise SetupError("this Python cannot make a venv; as root, `apt-get install python3-venv`")
    apt.install(["python3-venv"])
    if not _can_make_venvs():
        raise SetupError(
            f"{sys.executable} cannot make a venv, and python3-venv is for another Python; "
            "run make with PYTHON=/usr/bin/python3.11"
        )


def _can_make_venvs() -> bool:
    probe = subprocess.run(
        [sys.executable, "-c", "import ensurepip, venv"], capture_output=True, check=False
    )
    return probe.returncode == 0


def call(command: Sequence[str], advice: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        tail = "".join(f"\n  {line}" for line in done.stdout.splitlines()[-TAIL_LINES:])
        raise SetupError(f"`{' '.join(command)}` fails; {advice}. It said:{tail}")


if __name__ == "__main__":
    sys.exit(carry_out(ensure))

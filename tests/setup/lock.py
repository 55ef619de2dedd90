"""
Pins the newest versions that pyproject.toml allows, with their hashes.

    python -m tests.setup.lock

`systemd/requirements.txt` holds what the daemon needs to run, `tests/requirements.txt` that and
what development needs. Both come from the public index alone, whatever pip is told on this
machine, so that they hold every file's hash and fit everywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup.state import CLONE, SetupError, carry_out, say

if TYPE_CHECKING:
    from collections.abc import Sequence

PIP_TOOLS = "pip-tools==7.6.2"
INDEX = "https://pypi.org/simple"
RUNTIME = CLONE / "systemd" / "requirements.txt"
DEVELOPMENT = CLONE / "tests" / "requirements.txt"
HEADER = "# {what}, pinned by `make lock` from pyproject.toml; not edited by hand.\n"
OPTIONS = (
    "--quiet",
    "--generate-hashes",
    "--allow-unsafe",
    "--strip-extras",
    "--no-annotate",
    "--no-header",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-emit-trusted-host",
    f"--index-url={INDEX}",
)


def make_locks() -> int:
    say("pinning the newest versions; this takes a minute or two")
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    runtime: list[str] = project["dependencies"]
    development: list[str] = project["optional-dependencies"]["dev"]
    with tempfile.TemporaryDirectory(prefix="executord-lock-") as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        _call([python, "-m", "pip", "install", "--quiet", PIP_TOOLS], folder)
        pinned = _compile(python, folder, "runtime", runtime, [])
        say(f"{RUNTIME.relative_to(CLONE)}: {pinned.count('==')} packages")
        everything = _compile(
            python, folder, "development", runtime + development, ["--constraint=runtime.txt"]
        )
        say(f"{DEVELOPMENT.relative_to(CLONE)}: {everything.count('==')} packages")
    RUNTIME.write_text(HEADER.format(what="What executord needs to run") + pinned)
    DEVELOPMENT.write_text(HEADER.format(what="What development needs") + everything)
    return 0


def _compile(
    python: Path, folder: Path, name: str, wanted: Sequence[str], more: Sequence[str]
) -> str:
    """Give the lock's text for these requirements."""
    (folder / f"{name}.in").write_text("".join(f"{line}\n" for line in wanted))
    target = folder / f"{name}.txt"
    arguments = [*OPTIONS, *more, f"--output-file={target.name}", f"{name}.in"]
    _call([python, "-m", "piptools", "compile", *arguments], folder)
    return target.read_text()


def _call(command: Sequence[str | Path], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=_environment(), check=False)
    if done.returncode != 0:
        raise SetupError(f"{PIP_TOOLS} cannot pin the versions; mend what it said above")


def _environment() -> dict[str, str]:
    """Leave out where pip is told to look, keep how it gets there (proxies, certificates)."""
    places = {"PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"}
    kept = {name: value for name, value in os.environ.items() if name not in places}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


if __name__ == "__main__":
    sys.exit(carry_out(make_locks))

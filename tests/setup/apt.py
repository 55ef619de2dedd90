"""Debian packages: installed for the engine, or only downloaded for the images."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup.state import SetupError, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LISTS = Path("/var/lib/apt/lists")
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = """\
#!/bin/sh
# From executord's set-up, while it installs packages: starts no service. May be removed.
exit 101
"""
OPTIONS = ("-y", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root")
TAIL_LINES = 15


def install(packages: Sequence[str]) -> None:
    """Install from Debian without starting any service; refresh the package lists if needed."""
    say(f"installing {' '.join(packages)} with apt-get")
    with _no_service_starts():
        _with_fresh_lists(["install", "--no-install-recommends", *packages], Path("/"))


def download(packages: Sequence[str], folder: Path) -> None:
    """Fetch the packages' .deb files into the folder, installing nothing."""
    say(f"downloading {len(packages)} Debian packages")
    _with_fresh_lists(["download", *packages], folder)


def _with_fresh_lists(arguments: Sequence[str], folder: Path) -> None:
    """Run apt-get; where it fails, or never had lists, refresh them and try once more."""
    if shutil.which("apt-get") is None:
        raise SetupError(
            "this needs Debian's apt-get, which is not here; "
            "start a Docker engine yourself and set DOCKER_HOST to its unix:// socket"
        )
    if any(LISTS.glob("*_Packages*")) and _apt(arguments, folder) is None:
        return
    say("refreshing the package lists with apt-get update")
    update_trouble = _apt(["update"], folder)
    trouble = _apt(arguments, folder)
    if trouble is not None:
        raise SetupError(
            f"`apt-get {' '.join(arguments)}` fails; see to it that apt-get works "
            f"(root, network, sources), then try again. It said:\n{update_trouble or ''}{trouble}"
        )


def _apt(arguments: Sequence[str], folder: Path) -> str | None:
    """Give None when it went well, else the last lines of what it said."""
    done = subprocess.run(
        ["apt-get", *OPTIONS, *arguments],
        cwd=folder,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return None
    return "".join(f"  {line}\n" for line in done.stdout.splitlines()[-TAIL_LINES:])


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Have the packages' scripts start nothing; a policy that is already there stays."""
    stale = POLICY.exists() and POLICY.read_text(errors="replace") == POLICY_TEXT
    if not POLICY.exists():
        try:
            POLICY.write_text(POLICY_TEXT)
        except OSError as error:
            raise SetupError(
                f"cannot write {POLICY} ({error.strerror}): installing packages needs root"
            ) from error
        POLICY.chmod(0o755)
        stale = True
    try:
        yield
    finally:
        if stale:
            POLICY.unlink(missing_ok=True)

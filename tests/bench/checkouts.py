"""Other tools that put a tree of files into a fresh directory, each in its fastest usual way."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.setup.state import dev_folder_path


@dataclass(frozen=True, slots=True)
class Checkout:
    """`take_in` stores the project below a home of the tool's own, untimed; `check_out` is timed.

    `forget` undoes a check-out; by default the target is deleted.
    """

    name: str
    program: str
    take_in: Callable[[Path, Path], None]
    check_out: Callable[[Path, Path, Path], None]
    forget: Callable[[Path, Path], None]

    def timed_ms(self, project: Path, home: Path, target: Path) -> float:
        """Project and home are what `take_in` was given; the target is deleted afterwards."""
        began = time.perf_counter()
        self.check_out(project, home, target)
        taken = (time.perf_counter() - began) * 1000
        self.forget(home, target)
        return taken


def available() -> list[Checkout]:
    return [checkout for checkout in _ALL if shutil.which(checkout.program)]


def call(*words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    command = [str(word) for word in words]
    subprocess.run(
        command,
        check=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _nothing(_project: Path, _home: Path) -> None:
    """Reads the project itself."""


def _delete(_home: Path, target: Path) -> None:
    shutil.rmtree(target)


def _git_in(project: Path, home: Path) -> None:
    shutil.copytree(project, home, symlinks=True, copy_function=os.link)
    call("git", "init", "-q", home)
    call("git", "-C", home, "add", "-A")
    who = ("-c", "user.name=b", "-c", "user.email=b@localhost", "-c", "gc.auto=0")
    call("git", "-C", home, *who, "commit", "-q", "-m", "b")


def _git_out(_project: Path, home: Path, target: Path) -> None:
    call("git", "-C", home, "worktree", "add", "--detach", "-f", target)


def _git_forget(home: Path, target: Path) -> None:
    call("git", "-C", home, "worktree", "remove", "--force", target)


def _ostree_in(project: Path, home: Path) -> None:
    call("ostree", f"--repo={home}", "init", "--mode=bare")
    call("ostree", f"--repo={home}", "commit", "--branch=b", f"--tree=dir={project}")


def _ostree_out(_project: Path, home: Path, target: Path) -> None:
    call("ostree", f"--repo={home}", "checkout", "-H", "b", target)


_RESTIC = {"RESTIC_PASSWORD": "bench"}


def _restic_in(project: Path, home: Path) -> None:
    call("restic", "-r", home, "init", env=_RESTIC)
    call("restic", "-r", home, "--no-cache", "backup", ".", cwd=project, env=_RESTIC)


def _restic_out(_project: Path, home: Path, target: Path) -> None:
    call("restic", "-r", home, "--no-cache", "restore", "latest", "--target", target, env=_RESTIC)


def _dvc() -> str:
    return str(dev_folder_path() / "peers" / "dvc")


def _dvc_in(project: Path, home: Path) -> None:
    home.mkdir()
    shutil.copytree(project, home / "data", symlinks=True)
    call(_dvc(), "init", "--no-scm", "-q", cwd=home)
    call(_dvc(), "config", "cache.type", "hardlink", cwd=home)
    call(_dvc(), "config", "core.analytics", "false", cwd=home)
    call(_dvc(), "add", "-q", "data", cwd=home)
    shutil.rmtree(home / "data")


def _dvc_out(_project: Path, home: Path, _target: Path) -> None:
    call(_dvc(), "checkout", "-q", cwd=home)


def _dvc_forget(home: Path, _target: Path) -> None:
    shutil.rmtree(home / "data")


def _plain(*words: str) -> Callable[[Path, Path, Path], None]:
    return lambda project, _home, target: call(*words, f"{project}/.", target)


def _copy_out(project: Path, _home: Path, target: Path) -> None:
    call("rsync", "-a", f"{project}/", f"{target}/")


_ALL: Sequence[Checkout] = (
    Checkout("cp -al", "cp", _nothing, _plain("cp", "-al"), _delete),
    Checkout("cp -a", "cp", _nothing, _plain("cp", "-a"), _delete),
    Checkout("rsync -a", "rsync", _nothing, _copy_out, _delete),
    Checkout("ostree checkout -H", "ostree", _ostree_in, _ostree_out, _delete),
    Checkout("git worktree add", "git", _git_in, _git_out, _git_forget),
    Checkout("restic restore", "restic", _restic_in, _restic_out, _delete),
    Checkout("dvc checkout, hardlinks", _dvc(), _dvc_in, _dvc_out, _dvc_forget),
)

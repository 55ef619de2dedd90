"""Small file systems of any kind, in files, mounted for the length of a test."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.setup.apt import install

_PACKAGES = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs"}
_QUIET: Mapping[str, Sequence[str]] = {
    "ext4": ("-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"),
    "xfs": ("-q", "-f", "-m", "reflink=1"),
    "btrfs": ("-q", "-f"),
}
_UNMOUNT_TRIES = 20
_UNMOUNT_PAUSE_SECONDS = 0.1
SMALLEST_BYTES = {"ext4": 8 << 20, "xfs": 300 << 20, "btrfs": 128 << 20}


@contextmanager
def file_system(
    root: Path,
    kind: str,
    *,
    size: int = 0,
    make: Sequence[str] = (),
    options: str = "",
) -> Iterator[Path]:
    """Mounted at `root`, made with the arguments `make`; `size` in bytes, 0 for the least."""
    program = f"mkfs.{kind}"
    if shutil.which(program) is None:
        install([_PACKAGES[program]])
    image = root.with_name(f"{root.name}.image")
    with image.open("wb") as file:
        file.truncate(size or SMALLEST_BYTES[kind])
    _run(program, *_QUIET[kind], *make, str(image))
    root.mkdir()
    _run("mount", "-o", f"loop,{options}" if options else "loop", str(image), str(root))
    try:
        yield root
    finally:
        unmount(root)
        image.unlink()


@contextmanager
def overlay(target: Path, *, lower: Sequence[Path], upper: Path, work: Path) -> Iterator[Path]:
    """As the engine mounts it for a run."""
    lowers = ":".join(str(path) for path in lower)
    options = f"lowerdir={lowers},upperdir={upper},workdir={work},userxattr,volatile"
    target.mkdir(exist_ok=True)
    _run("mount", "-t", "overlay", "-o", options, "overlay", str(target))
    try:
        yield target
    finally:
        unmount(target)
        shutil.rmtree(work / "work", ignore_errors=True)  # the kernel's, `volatile` left a mark


def unmount(path: Path) -> None:
    """A background thread may still be closing what it had open there."""
    for _ in range(_UNMOUNT_TRIES):
        if subprocess.run(["umount", str(path)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(_UNMOUNT_PAUSE_SECONDS)
    _run("umount", str(path))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"

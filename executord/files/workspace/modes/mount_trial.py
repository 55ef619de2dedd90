"""Mounts an overlay for a moment, in a mount namespace of its own, and does to it what runs do.

A program by itself, with the standard library alone: `mount_trial.py FOLDER new-user|same-user`,
where FOLDER holds `lower` (with the files that are used here), `upper`, `work` and `merged`. The
mount goes away with the process. Exit status 0: fine; 1: standard output says what was refused;
3: this process may not mount at all.
"""

import ctypes
import os
import sys
from pathlib import Path

_NEW_MOUNTS = 0x00020000  # linux/sched.h
_NEW_USER = 0x10000000
_RECURSIVE_PRIVATE = 0x4000 | 0x40000  # linux/mount.h: MS_REC, MS_PRIVATE
REFUSED = 1
MAY_NOT_MOUNT = 3

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _leave_namespaces(*, new_user: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if not new_user:
        try:
            _call(_libc.unshare(_NEW_MOUNTS))
        except PermissionError:
            new_user = True
    if new_user:
        _call(_libc.unshare(_NEW_USER | _NEW_MOUNTS))
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
    _call(_libc.mount(None, b"/", None, _RECURSIVE_PRIVATE, None))


def _mount(folder: Path) -> None:
    options = (
        f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work,userxattr,volatile"
    )
    target = os.fsencode(folder / "merged")
    _call(_libc.mount(b"overlay", target, b"overlay", 0, os.fsencode(options)))


def _use(merged: Path) -> None:
    with (merged / "changed").open("ab") as file:
        file.write(b" and changed")
    (merged / "deleted").unlink()
    (merged / "moved").rename(merged / "moved-here")
    (merged / "replaced" / "old").unlink()
    (merged / "replaced").rmdir()
    (merged / "replaced").mkdir()
    (merged / "replaced" / "new").write_bytes(b"new")


def main(folder: Path, who: str) -> int:
    try:
        _leave_namespaces(new_user=who == "new-user")
    except OSError as error:
        print(f"mounting is not allowed here: {error.strerror}")  # noqa: T201 - its answer
        return MAY_NOT_MOUNT
    step = "mount an overlay whose upper directory is there"
    try:
        _mount(folder)
        step = "change files through an overlay there"
        _use(folder / "merged")
    except OSError as error:
        print(f"cannot {step}: {error.strerror}")  # noqa: T201 - its answer
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))

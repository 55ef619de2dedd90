"""Whether the engine could mount overlays whose upper directories are in a folder.

The truth is a mount: one is made in a child process, where only that process sees it. Where no
child of ours may mount, the file system is asked for what the kernel would ask for.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path

from executord.files.system.disk import unique_name
from executord.files.workspace.modes import mount_trial

_TRIAL_SECONDS = 20.0
_OPAQUE = "user.overlay.opaque"
_UNKNOWN_TYPE = 0
_REFUSED_AS_UPPER = {  # linux/magic.h
    0x794C7630: "an overlay",
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0x517B: "SMB",
    0x65735546: "FUSE",
    0x01021997: "9p",
    0x4D44: "FAT",
    0x2011BAB0: "exFAT",
    0xF15F: "eCryptfs",
}

_libc = ctypes.CDLL(None, use_errno=True)


class _Listed(ctypes.Structure):
    """struct dirent of the C library, where it is as the kernel's linux_dirent64."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.fdopendir.restype = ctypes.c_void_p
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.readdir.restype = ctypes.POINTER(_Listed)
_libc.closedir.argtypes = (ctypes.c_void_p,)


def why_not_overlay(lower_side: Path, upper_side: Path, *, rootless: bool) -> str:
    """Nothing ("") where it works, else the reason. `lower_side` is where snapshots are,
    `upper_side` where runs are; scratch folders are made there. Blocks; raises OSError.
    """
    lower, folder = lower_side / unique_name(), upper_side / unique_name()
    try:
        _make(lower, folder)
        refused = _try_mount(folder, rootless=rootless)
        if refused is None:
            return _why_not_by_facts(folder)
        return refused or _wrong_result(folder)
    except PermissionError as error:
        return f"a working directory cannot be tried out: {error}"
    finally:
        _remove(lower)
        _remove(folder)


def _make(lower: Path, folder: Path) -> None:
    for path in (lower, folder, folder / "upper", folder / "work", folder / "merged"):
        path.mkdir(mode=0o755)
    (folder / "lower").symlink_to(lower)
    for name in ("changed", "deleted", "moved"):
        (lower / name).write_bytes(name.encode())
    (lower / "replaced").mkdir()
    (lower / "replaced" / "old").write_bytes(b"old")


def _remove(path: Path) -> None:
    """Everything in it is ours, and no deeper than a few folders."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            (Path(folder) / name).unlink()
        for name in folders:
            each = Path(folder) / name
            each.chmod(0o700) if not each.is_symlink() else None
            each.unlink() if each.is_symlink() else each.rmdir()
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def _try_mount(folder: Path, *, rootless: bool) -> str | None:
    """What was refused, "" for nothing; None where nobody let us try."""
    program = str(Path(mount_trial.__file__))
    who = "new-user" if rootless else "same-user"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", program, str(folder), who],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"mounting an overlay there takes more than {_TRIAL_SECONDS:g} seconds"
    except OSError:
        return None
    if done.returncode == 0:
        return ""
    return done.stdout.strip() if done.returncode == mount_trial.REFUSED else None


def _wrong_result(folder: Path) -> str:
    """What a run does has to be found in the upper directory as it is expected there."""
    upper = folder / "upper"
    for name in ("deleted", "moved"):
        if not _is_whiteout(upper / name):
            return "a deleted file leaves no whiteout (a 0/0 character device)"
    if (upper / "changed").read_bytes() != b"changed and changed":
        return "a changed file is not copied up"
    if (upper / "moved-here").read_bytes() != b"moved":
        return "a renamed file is not copied up"
    if os.getxattr(upper / "replaced", _OPAQUE) != b"y":
        return f"a replaced directory is not marked with {_OPAQUE}"
    return ""


def _is_whiteout(path: Path) -> bool:
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return False
    return path.is_char_device() and facts.st_rdev == 0


def _why_not_by_facts(folder: Path) -> str:
    upper = folder / "upper"
    kind = _file_system(upper)
    if kind in _REFUSED_AS_UPPER:
        return f"{_REFUSED_AS_UPPER[kind]} cannot be the upper layer of an overlay"
    try:
        os.setxattr(upper, _OPAQUE, b"y")
        os.removexattr(upper, _OPAQUE)
    except OSError as error:
        return f"the file system takes no extended attributes of users: {error.strerror}"
    try:
        os.mknod(upper / "whiteout", 0o020000, os.makedev(0, 0))
        (upper / "whiteout").rename(folder / "work" / "whiteout")
    except OSError as error:
        return f"the file system takes no whiteouts (0/0 character devices): {error.strerror}"
    if _UNKNOWN_TYPE in _types_listed(folder / "work"):
        return "the file system does not say of what type directory entries are (d_type)"
    return ""


def _file_system(path: Path) -> int:
    """The type's magic number, 0 where it is not told."""
    facts = (ctypes.c_long * 32)()
    done = _libc.statfs(os.fsencode(path), ctypes.byref(facts))
    return facts[0] & 0xFFFFFFFF if done == 0 else 0


def _types_listed(path: Path) -> set[int]:
    listing = _libc.fdopendir(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    found: set[int] = set()
    try:
        while entry := _libc.readdir(listing):
            if entry.contents.d_name not in (b".", b".."):
                found.add(entry.contents.d_type)
    finally:
        _libc.closedir(listing)
    return found

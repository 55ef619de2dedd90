"""Paths of the configuration, kept fit for sockets, mounts and their option strings."""

from pathlib import Path, PurePosixPath
from typing import Any

from executord.config.problems import BadValueError
from executord.config.values import a_list, quoted, shown, text

MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 with the closing NUL
MAX_STATE_DIR_BYTES = 128

_NOT_IN_MOUNT_OPTIONS = ":,\\"


def absolute_path(value: Any) -> Path:
    path = text(value)
    if not path.startswith("/"):
        raise BadValueError(f"{shown(value)} is not an absolute path; begin it with /")
    if ".." in PurePosixPath(path).parts:
        raise BadValueError(f"{shown(value)} has '..' in it; write the path without it")
    return Path(path)


def optional_path(value: Any) -> Path | None:
    return None if value == "" else absolute_path(value)


def state_dir(value: Any) -> Path:
    path = absolute_path(value)
    length = len(bytes(path))
    if path == Path("/"):
        raise BadValueError("the root directory cannot be it; give it a directory of its own")
    if length > MAX_STATE_DIR_BYTES:
        raise BadValueError(
            f"is {length} bytes long; at most {MAX_STATE_DIR_BYTES} leave room for the mount"
            " options of a workspace, which name many directories below it"
        )
    return _mountable(path)


def socket_path(value: Any) -> Path:
    path = absolute_path(value)
    length = len(bytes(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise BadValueError(
            f"is {length} bytes long; the kernel takes at most {MAX_SOCKET_PATH_BYTES} for a socket"
        )
    return path


def container_path(value: Any) -> str:
    path = absolute_path(value)
    if path == Path("/"):
        raise BadValueError("cannot be the container's root; use a directory such as /mnt")
    return str(_mountable(path))


def allowed_mounts(value: Any) -> tuple[Path, ...]:
    paths = tuple(absolute_path(each) for each in a_list(value))
    if Path("/") in paths:
        raise BadValueError("'/' would hand out the whole host; name the data's directories")
    return paths


def _mountable(path: Path) -> Path:
    bad = sorted({c for c in str(path) if c in _NOT_IN_MOUNT_OPTIONS or not c.isprintable()})
    if bad:
        raise BadValueError(f"has {quoted(bad)} in it, which a mount option cannot carry")
    return path

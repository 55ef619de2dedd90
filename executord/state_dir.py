"""The state directory: held by one daemon at a time, with the node's own key in it."""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

_KEY_BYTES = 32


def lock(state_dir: Path) -> int | None:
    """A descriptor that holds the directory, or None where another daemon has it."""
    state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def node_key(state_dir: Path) -> bytes:
    """Made once; whoever can read it could guess secrets from fingerprints."""
    path = state_dir / "key"
    with suppress(FileNotFoundError):
        return path.read_bytes()
    aside = path.with_suffix(".new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(_KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return path.read_bytes()


def make_own_store(state_dir: Path, store_url: str) -> None:
    """A store inside the state directory is ours to make; any other has to be there."""
    path = Path(store_url.removeprefix("file://"))
    if path.is_absolute() and path.is_relative_to(state_dir):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)

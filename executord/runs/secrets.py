"""Secrets of runs: files in memory, one directory a run, never in the journal or a log.

They survive a restart of the daemon, since the directory lies on a tmpfs outside it, and are gone
with the next boot of the host.
"""

import asyncio
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from executord.core.reasons import Fault, FaultError, Reason


class SecretFiles:
    """`directory` should lie on a tmpfs; `user` is the uid and gid that containers run as."""

    def __init__(self, *, directory: Path, user: tuple[int, int]) -> None:
        self._directory = directory
        self._user = user

    async def put(self, run_id: str, secrets: Mapping[str, str]) -> None:
        """Durable enough for a daemon that restarts; all or nothing."""
        if secrets:
            await asyncio.to_thread(self._write, run_id, dict(secrets))

    async def path_of(self, run_id: str, names: tuple[str, ...]) -> Path:
        """The directory to mount. FaultError SECRETS_LOST when one of `names` is gone."""
        directory = self._directory / run_id
        missing = await asyncio.to_thread(_missing, directory, names)
        if missing:
            raise FaultError(
                Fault(
                    Reason.SECRETS_LOST,
                    f"Gone: {', '.join(missing)}.",
                    {"missing": len(missing)},
                )
            )
        return directory

    async def values(self, run_id: str) -> tuple[str, ...]:
        """What must not be shown in the run's console."""
        return await asyncio.to_thread(self._read, run_id)

    async def remove(self, run_id: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._directory / run_id, ignore_errors=True)

    async def close(self) -> None:
        """Nothing is left where no run that goes on has secrets."""
        with suppress(OSError):
            await asyncio.to_thread(self._directory.rmdir)

    def _write(self, run_id: str, secrets: dict[str, str]) -> None:
        uid, gid = self._user
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        target = self._directory / run_id
        aside = self._directory / f".{run_id}.new"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        for name, value in secrets.items():
            descriptor = os.open(aside / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            with os.fdopen(descriptor, "wb") as file:
                file.write(value.encode("utf-8", "surrogateescape"))
            _give(aside / name, uid, gid)
        _give(aside, uid, gid)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)

    def _read(self, run_id: str) -> tuple[str, ...]:
        directory = self._directory / run_id
        if not directory.is_dir():
            return ()
        return tuple(
            path.read_bytes().decode("utf-8", "surrogateescape")
            for path in sorted(directory.iterdir())
        )


def _missing(directory: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not (directory / name).is_file()]


def _give(path: Path, uid: int, gid: int) -> None:
    if (os.geteuid(), os.getegid()) != (uid, gid):
        os.chown(path, uid, gid)


def runtime_directory(preferred: Path, *, instance: str) -> Path:
    """`preferred` where it lies on a tmpfs, else a place in shared memory of this host."""
    if _is_tmpfs(preferred):
        return preferred / "secrets"
    return Path("/dev/shm") / f"executord-{instance}"  # noqa: S108 - it is a tmpfs by design


def _is_tmpfs(path: Path) -> bool:
    """By the longest mount point above `path`, as the kernel lists them."""
    kinds: dict[str, str] = {}
    for line in (
        Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    ):
        _, mount_point, kind, *_ = line.split(" ")
        kinds[mount_point] = kind
    for parent in (path, *path.parents):
        if str(parent) in kinds:
            return kinds[str(parent)] in ("tmpfs", "ramfs")
    return False

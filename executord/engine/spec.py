"""The JSON from which the engine makes containers and volumes, with the defaults of every run."""

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from executord.core.reasons import Fault, FaultError, Reason
from executord.ports import BindMount, ContainerSpec

_OPEN_FILES = 16_384  # above the hard limit of an unprivileged engine no container would start
_LOG_FILES = 2
_SMALLEST_LOG_FILE_BYTES = 65_536
_SMALLEST_SHM_BYTES = 64 * 1024 * 1024

# The engine's options string is split at `,`, overlay's list of lower directories at `:`, and
# both read `\` as an escape; none of the four can be quoted through all of them.
_FORBIDDEN_IN_MOUNTS = frozenset(',:\\"\0\n')
_LONGEST_OPTIONS = 3400  # the kernel takes one page, of which the engine needs some itself


def container_config(spec: ContainerSpec) -> dict[str, Any]:
    """The body of `POST /containers/create`.

    The image's entrypoint stays in front of the command, as with the engine's own command line;
    its health check does not run, since nobody reads it and each probe is a process more.
    """
    return {
        "Image": spec.image,
        "Cmd": list(spec.command),
        "Env": [f"{name}={value}" for name, value in spec.env.items()],
        "WorkingDir": spec.working_dir,
        "User": spec.user,
        "Labels": dict(spec.labels),
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec),
    }


def _host_config(spec: ContainerSpec) -> dict[str, Any]:
    config: dict[str, Any] = {
        "AutoRemove": False,
        "Privileged": False,
        "Init": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "NetworkMode": spec.network,
        "RestartPolicy": {"Name": "no"},
        "IpcMode": "private",
        "PidsLimit": spec.pids_limit,
        "Memory": spec.memory_bytes,
        "MemorySwap": spec.memory_bytes,
        "NanoCpus": round(spec.cpus * 1e9),
        "ShmSize": max(_SMALLEST_SHM_BYTES, spec.memory_bytes // 2),
        "Ulimits": [
            {"Name": "nofile", "Soft": _OPEN_FILES, "Hard": _OPEN_FILES},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "Mounts": _mounts(spec),
        "LogConfig": _log_config(spec.log_max_bytes),
    }
    if spec.cgroup_parent:
        config["CgroupParent"] = spec.cgroup_parent
    if spec.gpus > 0:
        config["DeviceRequests"] = [{"Count": spec.gpus, "Capabilities": [["gpu"]]}]
    return config


def _mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = []
    if spec.volume:
        mounts.append(
            {
                "Type": "volume",
                "Source": spec.volume,
                "Target": spec.working_dir,
                "VolumeOptions": {"NoCopy": True},
            }
        )
    mounts.extend(_bind(bind) for bind in spec.binds)
    mounts.extend(
        {
            "Type": "volume",
            "Source": mount.volume,
            "Target": mount.target,
            "ReadOnly": True,
            "VolumeOptions": {"NoCopy": True},
        }
        for mount in spec.volumes
    )
    return mounts


def _bind(bind: BindMount) -> dict[str, Any]:
    """`ReadOnly` does not reach file systems mounted below the source, so these stay out."""
    return {
        "Type": "bind",
        "Source": bind.source,
        "Target": bind.target,
        "ReadOnly": bind.read_only,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": bind.read_only},
    }


def _log_config(log_max_bytes: int) -> dict[str, Any]:
    """`log_max_bytes` is for all files together; 0 sets no limit."""
    if not log_max_bytes:
        return {"Type": "json-file", "Config": {}}
    each = max(log_max_bytes // _LOG_FILES, _SMALLEST_LOG_FILE_BYTES)
    return {"Type": "json-file", "Config": {"max-size": str(each), "max-file": str(_LOG_FILES)}}


def overlay_volume_config(
    name: str, *, lower: Sequence[Path], upper: Path, work: Path, labels: Mapping[str, str]
) -> dict[str, Any]:
    """The body of `POST /volumes/create`; FaultError WORKSPACE_FAILED for impossible paths.

    Without `volatile` every unmount would flush the whole file system; who records that files
    are kept has to sync them.
    """
    for path in (*lower, upper, work):
        _check_mountable(path)
    lowers = ":".join(str(path) for path in lower)
    options = f"lowerdir={lowers},upperdir={upper},workdir={work},userxattr,volatile"
    if not lower or len(options.encode(errors="surrogateescape")) > _LONGEST_OPTIONS:
        raise _unmountable(f"{len(lower)} layers do not fit into one mount.")
    return {
        "Name": name,
        "Driver": "local",
        "DriverOpts": {"type": "overlay", "device": "overlay", "o": options},
        "Labels": dict(labels),
    }


def bind_volume_config(name: str, *, directory: Path, labels: Mapping[str, str]) -> dict[str, Any]:
    """As `overlay_volume_config`, of one directory that holds everything."""
    _check_mountable(directory)
    return {
        "Name": name,
        "Driver": "local",
        "DriverOpts": {"type": "none", "device": str(directory), "o": "bind"},
        "Labels": dict(labels),
    }


def read_only_volume_config(
    name: str, *, lower: Sequence[Path], labels: Mapping[str, str]
) -> dict[str, Any]:
    """As `overlay_volume_config`, without a directory that could be written.

    The kernel asks for two directories at least; it mounts such an overlay read-only whatever
    else is said.
    """
    for path in lower:
        _check_mountable(path)
    options = f"lowerdir={':'.join(str(path) for path in lower)},userxattr"
    if len(lower) < 2 or len(options.encode(errors="surrogateescape")) > _LONGEST_OPTIONS:
        raise _unmountable(f"{len(lower)} layers cannot be one read-only mount.")
    return {
        "Name": name,
        "Driver": "local",
        "DriverOpts": {"type": "overlay", "device": "overlay", "o": options},
        "Labels": dict(labels),
    }


def _check_mountable(path: Path) -> None:
    if not path.is_absolute() or _FORBIDDEN_IN_MOUNTS & set(str(path)) or ".." in path.parts:
        raise _unmountable(f"the path `{path}` cannot stand in a mount option.")


def dockerfile_context(dockerfile: str) -> bytes:
    """The body of `POST /build`: a tar that holds the Dockerfile and nothing else.

    It ends with the two empty blocks that end a tar, without the padding that tarfile adds: the
    engine reads no further, and does not notice a client that goes away before it has read all.
    """
    text = dockerfile.encode("utf-8", "surrogateescape")
    entry = tarfile.TarInfo("Dockerfile")
    entry.size = len(text)
    entry.mode = 0o644
    header = entry.tobuf(tarfile.USTAR_FORMAT)
    padding = -len(text) % tarfile.BLOCKSIZE
    return header + text + bytes(padding + 2 * tarfile.BLOCKSIZE)


def _unmountable(why: str) -> FaultError:
    return FaultError(
        Fault(Reason.WORKSPACE_FAILED, f"Could not make the run's working directory: {why}")
    )

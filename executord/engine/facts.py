"""Reads the engine's JSON: what it says of itself, of images and of containers.

Values that are not what they should be raise ValueError, TypeError or KeyError; the caller takes
these for an answer that makes no sense.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

from executord.ports import ContainerFacts, ContainerState, EngineFacts, ImageFacts

_STATES: tuple[str, ...] = get_args(ContainerState)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


def parse_time(text: str) -> float | None:
    """Unix seconds of an RFC 3339 time with up to nanoseconds; None for the engine's "never"."""
    if text in ("", "0001-01-01T00:00:00Z"):
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"`{text[:50]}` is not a time")
    whole = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    return whole.timestamp() + float(match[2] or 0)


def engine_facts(version: Mapping[str, Any], info: Mapping[str, Any]) -> EngineFacts:
    return EngineFacts(
        version=str(version["Version"]),
        api_version=str(version["ApiVersion"]),
        storage_driver=str(info["Driver"]),
        cgroup_driver=str(info.get("CgroupDriver") or ""),
        cgroup_version=int(info.get("CgroupVersion") or 1),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        architecture=str(info.get("Architecture") or ""),
        data_root=str(info.get("DockerRootDir") or ""),
        rootless=any("name=rootless" in option for option in info.get("SecurityOptions") or ()),
    )


def image_facts(image: Mapping[str, Any]) -> ImageFacts:
    config = image.get("Config") or {}
    layers = (image.get("RootFS") or {}).get("Layers")
    return ImageFacts(
        id=str(image["Id"]),
        tags=_texts(image.get("RepoTags"), without="<none>:<none>"),
        digests=_texts(image.get("RepoDigests"), without="<none>@<none>"),
        size_bytes=int(image.get("Size") or 0),
        created_at=parse_time(str(image.get("Created") or "")) or 0.0,
        architecture=str(image.get("Architecture") or ""),
        layers=_texts(layers),
        labels=_labels(config.get("Labels")),
    )


def container_facts(container: Mapping[str, Any]) -> ContainerFacts:
    state = container["State"]
    status = state["Status"]
    if status not in _STATES:
        raise ValueError(f"`{status}` is not a container's state")
    error = str(state.get("Error") or "")
    has_ended = status in ("exited", "dead") or (status == "created" and error)
    return ContainerFacts(
        id=str(container["Id"]),
        name=str(container["Name"]).removeprefix("/"),
        state=status,
        pid=int(state.get("Pid") or 0),
        exit_code=int(state["ExitCode"]) if has_ended else None,
        oom_killed=bool(state.get("OOMKilled")),
        error=error,
        started_at=parse_time(str(state.get("StartedAt") or "")),
        finished_at=parse_time(str(state.get("FinishedAt") or "")),
        log_path=str(container.get("LogPath") or ""),
        labels=_labels((container.get("Config") or {}).get("Labels")),
    )


def _texts(values: Sequence[Any] | None, *, without: str = "") -> tuple[str, ...]:
    return tuple(str(value) for value in values or () if value != without)


def _labels(labels: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(key): str(value) for key, value in (labels or {}).items()}

"""Where the engine listens, and what may be named in a call to it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from executord.core.reasons import Fault, FaultError, Reason

DEFAULT_URL = "unix:///var/run/docker.sock"

_LONGEST_REFERENCE = 512
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?::[0-9]+)?(?:[/:@][A-Za-z0-9._+-]+)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_TCP = re.compile(r"(?:tcp|http)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})/?")


@dataclass(frozen=True, slots=True)
class Address:
    """`socket` is a path, or "" where the engine listens on TCP at `base_url`."""

    base_url: str
    socket: str = ""


def parse_address(url: str, environment: Mapping[str, str]) -> Address:
    """`url` "" means DOCKER_HOST, or the usual socket. ValueError says what is wrong with it."""
    url = url or environment.get("DOCKER_HOST", "") or DEFAULT_URL
    if url.startswith("unix://"):
        path = url.removeprefix("unix://")
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"engine url `{url}`: the socket's path must begin with `/`")
        return Address(base_url="http://localhost", socket=path)
    if match := _TCP.fullmatch(url):
        return Address(base_url=f"http://{match[1]}:{match[2]}")
    raise ValueError(
        f"engine url `{url}`: use `unix:///path/to/docker.sock` or `tcp://host:port`"
        " (TLS and ssh are not supported: the engine runs on this node)"
    )


def checked_reference(reference: str) -> str:
    """An image's name or id that is safe within a path; else FaultError IMAGE_NOT_FOUND."""
    plausible = len(reference) <= _LONGEST_REFERENCE and _REFERENCE.fullmatch(reference)
    if not plausible or any(part in (".", "..") for part in reference.split("/")):
        shown = reference[:100]
        raise FaultError(Fault(Reason.IMAGE_NOT_FOUND, f"`{shown}` is not the name of an image."))
    return reference


def checked_name(name: str) -> str:
    """A container's or volume's name or id that is safe within a path; else FaultError."""
    if not _NAME.fullmatch(name):
        shown = name[:100]
        raise FaultError(
            Fault(Reason.ENGINE_REFUSED, f"`{shown}` cannot be the name of a container or volume.")
        )
    return name


def split_tag(reference: str) -> tuple[str, str]:
    """Repository, and tag or digest ("latest" where there is neither)."""
    name, at, digest = reference.partition("@")
    if at:
        return _without_tag(name), digest
    return (_without_tag(name), _tag_of(name) or "latest")


def _tag_of(name: str) -> str:
    last = name.rsplit("/", 1)[-1]
    return last.partition(":")[2]


def _without_tag(name: str) -> str:
    tag = _tag_of(name)
    return name.removesuffix(f":{tag}") if tag else name

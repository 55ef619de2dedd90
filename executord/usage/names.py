"""What a run's own control group is called, for either of the engine's cgroup drivers."""

import hashlib
import re
from typing import Literal, TypeAlias

Driver: TypeAlias = Literal["cgroupfs", "systemd"]

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DIGEST_LENGTH = 32


def parent_group(driver: str, instance: str, run_id: str) -> str:
    """As the engine takes it: a path, or with systemd the name of a slice."""
    if driver == "systemd":
        return f"executord-{_escaped(instance)}-{_escaped(run_id)}.slice"
    return f"/{instance_group(driver, instance)}/{_plain(run_id)}"


def instance_group(driver: str, instance: str) -> str:
    """The group above those of all runs, as a path below a hierarchy's root."""
    if driver == "systemd":
        return slice_path(f"executord-{_escaped(instance)}.slice")
    return f"executord-{_plain(instance)}"


def group_path(driver: str, parent: str) -> str:
    """Where the group of that name lies, below a hierarchy's root."""
    return slice_path(parent) if driver == "systemd" else parent.strip("/")


def slice_path(name: str) -> str:
    """Slices are nested by the dashes in their names: a-b.slice lies in a.slice."""
    parts = name.removesuffix(".slice").split("-")
    return "/".join("-".join(parts[: end + 1]) + ".slice" for end in range(len(parts)))


def _plain(text: str) -> str:
    """Itself where it makes a short, harmless file name, else a digest of it."""
    if _PLAIN.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"+{digest[:_DIGEST_LENGTH]}"


def _escaped(text: str) -> str:
    """A dash means nesting to systemd; this is what systemd-escape makes of one."""
    return _plain(text).replace("+", "_").replace("-", "\\x2d")

"""The settings of a node, checked and complete. Names are the configuration's, with units."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from executord.core.admission import Tier


class UserIds(NamedTuple):
    """The numeric user and group that containers run as, and that own project files."""

    uid: int
    gid: int


class Address(NamedTuple):
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """`name` is part of every event's id: it has to stay the same for the life of the node."""

    name: str
    state_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """`socket_group` is "" and `socket_gid` None where the socket keeps the daemon's own group.

    `listen` serves /metrics and /healthz only; None: no TCP at all.
    """

    socket: Path
    socket_mode: int
    socket_group: str
    socket_gid: int | None
    listen: Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    url: str
    deadline_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """`options` are handed to the store's client; they may hold credentials, so are not shown."""

    url: str
    options: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Watermarks are shares of the most: evict from `high` down to `low`. 0 inodes: no limit."""

    max_size_bytes: int
    low_watermark: float
    high_watermark: float
    min_free_bytes: int
    max_inodes: int
    min_free_inodes: int
    verify: Literal["first_use", "background"]
    scrub_per_second_bytes: int
    mode: Literal["auto", "overlay", "reflink", "hardlink", "copy"]
    writable: tuple[str, ...]
    store_patience_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """`registry` is a prefix such as "registry.example.com/environments", or ""."""

    max_size_bytes: int
    min_free_bytes: int
    registry: str
    push: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """`default_image` is "" where every run has to name its own."""

    working_dir: str
    user: UserIds
    network: str
    default_image: str
    default_tier: str
    stop_grace_seconds: float
    max_queue: int
    console_limit_bytes: int
    allowed_mounts: tuple[Path, ...]
    pids_limit: int
    prepare_ahead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    interval_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """`url` is set for kind http, `path` for kind file; both are checked."""

    kind: Literal["none", "file", "http"]
    url: str
    path: Path | None
    headers_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    runs_days: float
    events_days: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who has which role: "user:NAME", "group:NAME" or "uid:N"."""

    admin: tuple[str, ...]
    operator: tuple[str, ...]
    submit: tuple[str, ...]
    read: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured. `tiers` has at least one entry, by name."""

    node: Node
    api: Api
    engine: Engine
    tiers: Mapping[str, Tier]
    store: Store
    files: Files
    images: Images
    runs: Runs
    usage: Usage
    upstream: Upstream
    retention: Retention
    access: Access

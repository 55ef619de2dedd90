"""Every key of the configuration, with its default as it would be written, and its parser.

"" and 0 stand for "as the machine has it" where a default depends on the machine; `load` says
how. The meaning of each key for people is in config.example.toml, which a test compares with this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from executord.config import paths, people, places
from executord.config import values as v


@dataclass(frozen=True, slots=True)
class Key:
    """`attribute` is the name in the settings where it is not the key's own."""

    name: str
    default: Any
    parse: v.Parse
    attribute: str = ""


TIER_KEYS: tuple[Key, ...] = (
    Key("cpus", 1.0, v.number(least=0.01, most=4096, unit="cpus")),
    Key("memory", "1GiB", v.size(least="8MiB"), "memory_bytes"),
    Key("gpus", 0, v.whole(least=0, most=64, unit="gpus")),
    Key("max_runs", 0, v.whole(least=0, most=10_000, unit="runs")),
)

DEFAULT_TIER = "small"

SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "node": (
        Key("name", "", lambda value: v.node_name(value) if value != "" else ""),
        Key("state_dir", "/var/lib/executord", paths.state_dir),
    ),
    "api": (
        Key("socket", "/run/executord/executord.sock", paths.socket_path),
        Key("socket_mode", "0660", people.file_mode),
        Key("socket_group", "", people.group),
        Key("listen", "", places.listen_address),
    ),
    "engine": (
        Key("url", "unix:///var/run/docker.sock", places.engine_url),
        Key("deadline_seconds", 30.0, v.number(least=1, most=600, unit="seconds")),
    ),
    "store": (
        Key("url", "", lambda value: places.store_url(value) if value != "" else ""),
        Key("options", {}, v.options),
    ),
    "files": (
        Key("max_size", "50GiB", v.size(least="1MiB"), "max_size_bytes"),
        Key("low_watermark", 0.8, v.number(least=0, most=1, unit="shares of max_size", above=True)),
        Key(
            "high_watermark", 0.9, v.number(least=0, most=1, unit="shares of max_size", above=True)
        ),
        Key("min_free", "5GiB", v.size(), "min_free_bytes"),
        Key("max_inodes", 0, v.whole(least=0, most=1 << 40, unit="inodes")),
        Key("min_free_inodes", 20_000, v.whole(least=0, most=1 << 40, unit="inodes")),
        Key("verify", "first_use", v.one_of("first_use", "background")),
        Key("scrub_bytes_per_second", "64MiB", v.size(), "scrub_per_second_bytes"),
        Key("mode", "auto", v.one_of("auto", "overlay", "reflink", "hardlink", "copy")),
        Key("writable", [], v.patterns),
        Key("store_patience_seconds", 300.0, v.number(least=0, most=86_400, unit="seconds")),
    ),
    "images": (
        Key("max_size", "50GiB", v.size(least="1MiB"), "max_size_bytes"),
        Key("min_free", "5GiB", v.size(), "min_free_bytes"),
        Key("registry", "", places.registry),
        Key("push", False, v.flag),
    ),
    "runs": (
        Key("working_dir", "/mnt", paths.container_path),
        Key("user", "1000:1000", people.user_ids),
        Key("network", "bridge", places.network),
        Key("default_image", "", places.image),
        Key("default_tier", "", v.text),
        Key("stop_grace_seconds", 10.0, v.number(least=0, most=3600, unit="seconds")),
        Key("max_queue", 1000, v.whole(least=1, most=1_000_000, unit="runs")),
        Key("console_limit", "64MiB", v.size(least="64KiB"), "console_limit_bytes"),
        Key("allowed_mounts", [], paths.allowed_mounts),
        Key("pids_limit", 1024, v.whole(least=16, most=4_194_304, unit="processes")),
        Key("prepare_ahead", 2, v.whole(least=0, most=64, unit="runs")),
    ),
    "usage": (Key("interval_seconds", 1.0, v.number(least=0.1, most=3600, unit="seconds")),),
    "upstream": (
        Key("kind", "none", v.one_of("none", "file", "http")),
        Key("url", "", places.upstream_url),
        Key("path", "", paths.optional_path),
        Key("headers_file", "", paths.optional_path),
    ),
    "retention": (
        Key("runs_days", 30.0, v.number(least=0, most=36_500, unit="days", above=True)),
        Key("events_days", 30.0, v.number(least=0, most=36_500, unit="days", above=True)),
    ),
    "access": (
        Key("admin", ["uid:0"], people.principals),
        Key("operator", [], people.principals),
        Key("submit", [], people.principals),
        Key("read", [], people.principals),
    ),
}

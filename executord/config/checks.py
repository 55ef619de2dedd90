"""What has to hold between keys. Each check is silent where a key it needs is wrong by itself."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from executord.config.lines import KeyPath
from executord.core.admission import Tier

Finding = tuple[KeyPath, str]


def check(found: Mapping[str, Any], tiers: Mapping[str, Tier]) -> Iterator[Finding]:
    """Gives the key concerned and a sentence for each thing that does not hold."""
    yield from _watermarks(found)
    yield from _default_tier(found, tiers)
    yield from _upstream(found)
    yield from _push(found)
    yield from _store_apart(found)
    yield from _mounts_apart(found)


def _watermarks(found: Mapping[str, Any]) -> Iterator[Finding]:
    low, high = found.get("files.low_watermark"), found.get("files.high_watermark")
    if low is not None and high is not None and low >= high:
        yield (
            ("files", "low_watermark"),
            f"{low:g} is not below high_watermark ({high:g}); eviction goes from high down to low",
        )


def _default_tier(found: Mapping[str, Any], tiers: Mapping[str, Tier]) -> Iterator[Finding]:
    default = found.get("runs.default_tier")
    if default and tiers and default not in tiers:
        yield (
            ("runs", "default_tier"),
            f"there is no tier {default!r}; choose one of {', '.join(tiers)} or add it",
        )


def _upstream(found: Mapping[str, Any]) -> Iterator[Finding]:
    kind = found.get("upstream.kind")
    if kind == "http" and found.get("upstream.url") == "":
        yield ("upstream", "url"), 'is missing, and kind is "http"; say where events are sent to'
    if kind == "file" and "upstream.path" in found and found["upstream.path"] is None:
        yield ("upstream", "path"), 'is missing, and kind is "file"; say where events are written'


def _push(found: Mapping[str, Any]) -> Iterator[Finding]:
    if found.get("images.push") and found.get("images.registry") == "":
        yield ("images", "push"), "is true, but there is no images.registry to push to; name one"


def _store_apart(found: Mapping[str, Any]) -> Iterator[Finding]:
    store, state_dir = _local_store(found), found.get("node.state_dir")
    if store and state_dir and state_dir.is_relative_to(store):
        yield (
            ("store", "url"),
            f"{store} holds the state directory {state_dir}; give the store a directory of its own",
        )


def _mounts_apart(found: Mapping[str, Any]) -> Iterator[Finding]:
    """A run that sees one of these could change other people's runs, or be root on the node."""
    private = {
        "the state directory": found.get("node.state_dir"),
        "the daemon's socket": found.get("api.socket"),
        "the engine's socket": _engine_socket(found),
        "the file store": _local_store(found),
    }
    store, state_dir = private["the file store"], private["the state directory"]
    if store and state_dir and store.is_relative_to(state_dir):
        del private["the file store"]
    for root in found.get("runs.allowed_mounts", ()):
        for what, path in private.items():
            if path and (path.is_relative_to(root) or root.is_relative_to(path)):
                yield (
                    ("runs", "allowed_mounts"),
                    f"{root} would let runs reach {what}, {path}; allow directories apart from it",
                )


def _local_store(found: Mapping[str, Any]) -> Path | None:
    parts = urlsplit(found.get("store.url", ""))
    return Path(parts.path) if parts.scheme == "file" else None


def _engine_socket(found: Mapping[str, Any]) -> Path | None:
    parts = urlsplit(found.get("engine.url", ""))
    return Path(parts.path) if parts.scheme == "unix" else None

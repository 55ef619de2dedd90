"""Where things are reached: the engine, the store, the upstream, registries, networks."""

import re
from typing import Any
from urllib.parse import urlsplit

from executord.config.paths import absolute_path, socket_path
from executord.config.problems import BadValueError
from executord.config.settings import Address
from executord.config.values import shown, text

_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_REGISTRY = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_STORE_SCHEMES = ("file", "s3", "gs", "az")


def network(value: Any) -> str:
    name = text(value)
    if name == "host":
        raise BadValueError('"host" would put runs into the node\'s own network; use "bridge"')
    if not _NETWORK.fullmatch(name):
        raise BadValueError(
            f'{shown(value)} is no network; use "bridge", "none" or a network\'s name'
        )
    return name


def image(value: Any) -> str:
    name = text(value)
    if name and not _IMAGE.fullmatch(name):
        raise BadValueError(f"{shown(value)} is no image; write a name such as python:3.12-slim")
    return name


def registry(value: Any) -> str:
    name = text(value).rstrip("/")
    if name and not _REGISTRY.fullmatch(name):
        raise BadValueError(
            f"{shown(value)} is no registry; write host[:port][/path] without a scheme, such as"
            ' "registry.example.com/environments"'
        )
    return name


def listen_address(value: Any) -> Address | None:
    where = text(value)
    if not where:
        return None
    parts = urlsplit(f"//{where}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or port is None or parts.netloc != where or "@" in where:
        raise BadValueError(f'{shown(value)} is no address; write host:port, as "127.0.0.1:9464"')
    return Address(parts.hostname, port)


def engine_url(value: Any) -> str:
    url = text(value)
    parts = urlsplit(url)
    if parts.scheme == "unix" and not parts.netloc:
        socket_path(parts.path)
        return url
    if parts.scheme in ("tcp", "http") and parts.hostname:
        return url
    raise BadValueError(
        f"{shown(value)} is no engine; write the socket's path as unix:///var/run/docker.sock,"
        " or tcp://host:port"
    )


def store_url(value: Any) -> str:
    url = text(value)
    parts = urlsplit(url)
    if parts.scheme not in _STORE_SCHEMES:
        raise BadValueError(
            f"{shown(value)} is no file store; begin with one of"
            f" {', '.join(f'{scheme}://' for scheme in _STORE_SCHEMES)}"
        )
    if "@" in parts.netloc:
        raise BadValueError("has credentials in it; put them under store.options")
    if parts.scheme == "file":
        if parts.netloc:
            raise BadValueError(
                f"has {parts.netloc!r} as its host; write three slashes: file:///path"
            )
        absolute_path(parts.path)
        if parts.path == "/":
            raise BadValueError("the root directory cannot be the store; give it one of its own")
    elif not parts.netloc:
        raise BadValueError(f"names no bucket; write {parts.scheme}://BUCKET/PREFIX")
    return url


def upstream_url(value: Any) -> str:
    url = text(value)
    if not url:
        return url
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadValueError(f"{shown(value)} is no web address; begin with http:// or https://")
    if "@" in parts.netloc:
        raise BadValueError("has credentials in it; put a header into the file of `headers_file`")
    return url

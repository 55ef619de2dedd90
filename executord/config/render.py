"""The effective configuration as TOML text: what `check-config` prints.

It can be loaded again and then gives the same settings, but for the store's options, whose values
are not shown.
"""

import json
from pathlib import Path
from typing import Any

from executord.config.keys import SECTIONS, TIER_KEYS, Key
from executord.config.settings import Address, Settings, UserIds
from executord.config.values import format_size


def render(settings: Settings) -> str:
    parts = [_table(name, getattr(settings, name), keys) for name, keys in SECTIONS.items()]
    tiers = [_table(f"tiers.{_name(t.name)}", t, TIER_KEYS) for t in settings.tiers.values()]
    return "\n".join([*parts, *tiers])


def _table(name: str, values: object, keys: tuple[Key, ...]) -> str:
    lines = [f"[{name}]"]
    for key in keys:
        value = getattr(values, key.attribute or key.name)
        lines.append(f"{key.name} = {_value(key, value)}")
    return "\n".join(lines) + "\n"


def _name(name: str) -> str:
    return _text(name) if "." in name else name


def _value(key: Key, value: Any) -> str:
    if key.attribute.endswith("_bytes"):
        return _text(format_size(value))
    if key.name == "socket_mode":
        return _text(f"{value:04o}")
    if key.name == "options":
        return "{" + ", ".join(f'{_text(option)} = "…"' for option in sorted(value)) + "}"
    return _plain(value)


def _plain(value: Any) -> str:
    match value:
        case None:
            return '""'
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case UserIds(uid, gid):
            return _text(f"{uid}:{gid}")
        case Address(host, port):
            return _text(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        case tuple():
            return "[" + ", ".join(_plain(each) for each in value) + "]"
        case Path() | str():
            return _text(str(value))
    raise TypeError(f"no way to write {type(value).__name__}")


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)

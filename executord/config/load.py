"""Reads a configuration file: every value checked, every problem told, every default filled in."""

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executord.config import checks, people, values
from executord.config import settings as s
from executord.config.keys import DEFAULT_TIER, SECTIONS, TIER_KEYS, Key
from executord.config.lines import KeyPath, find_lines, line_of
from executord.config.problems import BadValueError, ConfigError, Problem
from executord.core.admission import Tier

MAX_FILE_BYTES = 1 << 20

_TIER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SYNTAX_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What defaults take from the machine."""

    name: str
    cpus: int


def this_host() -> Host:
    return Host(name=socket.gethostname(), cpus=os.cpu_count() or 1)


def load(path: Path, *, host: Host | None = None) -> s.Settings:
    """The checked settings. Raises ConfigError with every problem of the file."""
    return parse(_read(path), path=path, host=host)


def parse(text: str, *, path: Path, host: Host | None = None) -> s.Settings:
    """As `load`, of a text; `path` only names it in errors."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, [_syntax_problem(error, text)]) from None
    reading = _Reading(document, find_lines(text))
    reading.read(host or this_host())
    if reading.problems:
        raise ConfigError(path, reading.problems)
    return _build(reading.found, reading.tiers)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            sentence = f"is larger than {MAX_FILE_BYTES} bytes; is this the right file?"
        else:
            return content.decode()
    except OSError as error:
        sentence = f"cannot be read ({error.strerror}); check the path and its permissions"
    except UnicodeDecodeError as error:
        sentence = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
    raise ConfigError(path, [Problem(key="", sentence=sentence)])


def _syntax_problem(error: ValueError | RecursionError, text: str) -> Problem:
    """The parser's own error in most cases; endless digits and nesting raise Python's instead."""
    message = str(error)
    place = _SYNTAX_PLACE.search(message)
    if place is None:
        return Problem(key="", sentence=f"is not valid TOML: {message}")
    what = message[: place.start()]
    if place[1] is None:
        line, column = text.count("\n") + 1, len(text.rpartition("\n")[2]) + 1
    else:
        line, column = int(place[1]), int(place[2])
    return Problem(key="", line=line, sentence=f"is not valid TOML at column {column}: {what}")


class _Reading:
    """One pass over a document; `found` holds what was right, by "section.key"."""

    def __init__(self, document: Mapping[str, Any], lines: Mapping[KeyPath, int]) -> None:
        self.found: dict[str, Any] = {}
        self.tiers: dict[str, Tier] = {}
        self.problems: list[Problem] = []
        self._document = document
        self._lines = lines

    def read(self, host: Host) -> None:
        self._refuse_unknown((), self._document, [*SECTIONS, "tiers"])
        for section, keys in SECTIONS.items():
            for key, value in self._read_table((section,), keys).items():
                self.found[f"{section}.{key}"] = value
        self._read_tiers(host)
        self._fill_in(host)
        for path, sentence in checks.check(self.found, self.tiers):
            self._complain(path, sentence)

    def _complain(self, path: KeyPath, sentence: str) -> None:
        line = line_of(path, self._lines)
        self.problems.append(Problem(key=".".join(path), line=line, sentence=sentence))

    def _refuse_unknown(self, path: KeyPath, given: Iterable[str], known: Sequence[str]) -> None:
        for name in given:
            if name not in known:
                self._complain((*path, name), _not_a_key(path, name, known))

    def _read_table(self, path: KeyPath, keys: Sequence[Key]) -> dict[str, Any]:
        table: Any = self._document
        for part in path:
            table = table.get(part, {})
        if not isinstance(table, dict):
            self._complain(path, f"is not a table; write [{'.'.join(path)}] and its keys below")
            return {}
        self._refuse_unknown(path, table, [key.name for key in keys])
        found = {}
        for key in keys:
            try:
                found[key.name] = key.parse(table.get(key.name, key.default))
            except BadValueError as error:
                self._complain((*path, key.name), str(error))
        return found

    def _read_tiers(self, host: Host) -> None:
        tables = self._document.get("tiers", {DEFAULT_TIER: {}})
        if not isinstance(tables, dict) or not tables:
            self._complain(("tiers",), f"holds no tier; write [tiers.{DEFAULT_TIER}]")
            return
        for name, table in tables.items():
            path = ("tiers", name)
            if not _TIER_NAME.fullmatch(name):
                self._complain(path, "a tier's name is letters, digits, '.', '_' and '-', up to 64")
                continue
            if name in {key.name for key in TIER_KEYS} and not isinstance(table, dict):
                self._complain(path, f"belongs to a tier; write it under [tiers.{DEFAULT_TIER}]")
                continue
            if "tiers" in self._document:
                found = self._read_table(path, TIER_KEYS)
            else:
                found = {key.name: key.parse(key.default) for key in TIER_KEYS}
            if len(found) == len(TIER_KEYS):
                attributes = {key.attribute or key.name: found[key.name] for key in TIER_KEYS}
                attributes["max_runs"] = attributes["max_runs"] or host.cpus
                self.tiers[name] = Tier(name=name, **attributes)

    def _fill_in(self, host: Host) -> None:
        """Defaults that depend on the machine or on other keys."""
        found = self.found
        if found.get("node.name") == "":
            try:
                found["node.name"] = values.node_name(host.name)
            except BadValueError as error:
                sentence = f"is not set, and the host's own name will not do: {error}"
                self._complain(("node", "name"), sentence)
        if found.get("store.url") == "" and "node.state_dir" in found:
            found["store.url"] = f"file://{found['node.state_dir']}/store"
        if found.get("runs.default_tier") == "" and self.tiers:
            found["runs.default_tier"] = next(iter(self.tiers))


def _not_a_key(path: KeyPath, name: str, known: Sequence[str]) -> str:
    kind = "key" if path else "section"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"is not a {kind}; did you mean {close[0]!r}?"
    homes = [section for section, keys in SECTIONS.items() if name in {key.name for key in keys}]
    if homes:
        return f"is not a {kind} here; it belongs under [{'] or ['.join(homes)}]"
    return f"is not a {kind}; known are {', '.join(known)}"


def _build(found: Mapping[str, Any], tiers: Mapping[str, Tier]) -> s.Settings:
    def section(name: str) -> dict[str, Any]:
        return {key.attribute or key.name: found[f"{name}.{key.name}"] for key in SECTIONS[name]}

    group = found["api.socket_group"]
    return s.Settings(
        node=s.Node(**section("node")),
        api=s.Api(**section("api"), socket_gid=people.group_id(group) if group else None),
        engine=s.Engine(**section("engine")),
        tiers=tiers,
        store=s.Store(**section("store")),
        files=s.Files(**section("files")),
        images=s.Images(**section("images")),
        runs=s.Runs(**section("runs")),
        usage=s.Usage(**section("usage")),
        upstream=s.Upstream(**section("upstream")),
        retention=s.Retention(**section("retention")),
        access=s.Access(**section("access")),
    )

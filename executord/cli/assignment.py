"""From options to an assignment, the JSON that `POST /v1/runs` takes.

Only the shape is looked at here: what is allowed is the daemon's to say.
"""

import json
import os
import pwd
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from executord.cli.errors import UsageProblemError

_REVISION = re.compile(r"sha256:[0-9a-f]{64}")
_DATASET = re.compile(r"(sha256:[0-9a-f]{64}):([^:]+)(?::ro)?")
_ID_BYTES = 6


def is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None


def new_run_id() -> str:
    """Made here, so that a request whose answer was lost can be repeated without a second run."""
    return f"r-{os.urandom(_ID_BYTES).hex()}"


def this_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def read_assignment(source: str) -> dict[str, Any]:
    """The JSON object in the file `source`, or on stdin for "-"."""
    text = sys.stdin.buffer.read() if source == "-" else _read(Path(source))
    where = "standard input" if source == "-" else source
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageProblemError(f"{where} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageProblemError(f"{where} holds no JSON object, so it is no assignment.")
    return value


def pairs(option: str, given: Iterable[str]) -> dict[str, str]:
    """`K=V` words as a mapping; a later one replaces an earlier one."""
    found = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageProblemError(f"{option} takes KEY=VALUE, not {word!r}.")
        found[key] = value
    return found


def environment(given: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """Variables from files, then from options; `K` alone takes the value that it has here."""
    found: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(_text(Path(file)).splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                found.update(_variable(line.strip(), f"{file}, line {number}"))
    for word in given:
        found.update(_variable(word, "--env"))
    return found


def _variable(word: str, where: str) -> dict[str, str]:
    key, equals, value = word.partition("=")
    if not key:
        raise UsageProblemError(f"{where}: {word!r} is no KEY=VALUE.")
    if equals:
        return {key: value}
    if key not in os.environ:
        raise UsageProblemError(f"{where}: {key} has no value, and none in this environment.")
    return {key: os.environ[key]}


def secrets(given: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """`K=V` and `K=FILE`; one line end at the end of a file is not part of the secret."""
    found = pairs("--secret", given)
    for key, file in pairs("--secret-file", files).items():
        found[key] = _text(Path(file)).removesuffix("\n").removesuffix("\r")
    return found


def mounts(given: Iterable[str]) -> list[dict[str, Any]]:
    """`SRC:DST`, read-only unless it ends in `:rw`, or `REV:DST`, which always is."""
    found: list[dict[str, Any]] = []
    for word in given:
        if match := _DATASET.fullmatch(word):
            found.append({"revision": match[1], "target": match[2]})
            continue
        if word.startswith("sha256:"):
            raise UsageProblemError(_wrong_dataset(word))
        parts = word.split(":")
        if not 2 <= len(parts) <= 3 or not all(parts) or parts[2:] not in ([], ["ro"], ["rw"]):
            raise UsageProblemError(
                f"--mount takes SOURCE:TARGET, SOURCE:TARGET:rw or REVISION:TARGET, not {word!r}."
            )
        found.append({"source": parts[0], "target": parts[1], "read_only": parts[2:] != ["rw"]})
    return found


def _wrong_dataset(word: str) -> str:
    digest = ":".join(word.split(":")[:2])
    if not is_revision(digest):
        return f"--mount: {not_whole(digest)}"
    if word.endswith(":rw"):
        return f"--mount: a revision is read-only, so it takes REVISION:TARGET, not {word!r}."
    return f"--mount takes REVISION:TARGET, not {word!r}."


def not_whole(digest: str) -> str:
    """Said of what should be a revision."""
    return f"a revision's whole digest (sha256: and 64 hex digits) is needed, not {digest!r}."


_ENDS = ("succeeded", "failed", "stopped")


def keep_on(words: str) -> list[str]:
    """`succeeded,failed` as a list; `none` is an empty one."""
    if words.strip() == "none":
        return []
    ends = [word.strip() for word in words.split(",")]
    unknown = [end for end in ends if end not in _ENDS]
    if unknown:
        raise UsageProblemError(
            f"--keep takes {', '.join(_ENDS)} separated by commas, or none; not {unknown[0]!r}."
        )
    return ends


def assignment(
    *,
    run_id: str,
    command: Sequence[str],
    project: str | None = None,
    number: int | None = None,
    started_by: str | None = None,
    tier: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    dockerfile: str | None = None,
    build_args: Sequence[str] = (),
    pull: str | None = None,
    env: Sequence[str] = (),
    env_files: Sequence[str] = (),
    secret: Sequence[str] = (),
    secret_files: Sequence[str] = (),
    mount: Sequence[str] = (),
    time_limit: float | None = None,
    keep: str | None = None,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """What is not given is left out: the node's defaults then count."""
    body: dict[str, Any] = {
        "id": run_id,
        "project": project,
        "number": number,
        "started_by": started_by,
        "tier": tier,
        "files": {"revision": revision} if revision else None,
        "environment": _given(
            image=image,
            dockerfile=_text(Path(dockerfile)) if dockerfile else None,
            build_args=pairs("--build-arg", build_args),
            pull=pull,
        ),
        "command": list(command),
        "env": environment(env, env_files),
        "secrets": secrets(secret, secret_files),
        "mounts": mounts(mount),
        "limits": _given(run_seconds=time_limit),
        "labels": pairs("--label", labels),
    }
    if keep is not None:
        body["results"] = {"keep_on": keep_on(keep)}
    return _given(**body)


def _given(**values: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in values.items()
        if value is not None and (value != {} or key == "results") and value != []
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageProblemError(f"{path} cannot be read: {error.strerror}.") from error


def _text(path: Path) -> str:
    try:
        return _read(path).decode()
    except UnicodeDecodeError as error:
        raise UsageProblemError(f"{path} is not UTF-8 text.") from error

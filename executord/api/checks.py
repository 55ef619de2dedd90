"""From bytes and text of a caller to checked values; what is wrong is named by its place."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from multidict import MultiMapping

from executord.api import wire
from executord.api.problems import ProblemError
from executord.core.refusals import Refusal
from executord.core.run import Environment, Mount
from executord.runs.drafts import AssignmentDraft
from executord.runs.prefetch import PrefetchWanted

T = TypeVar("T", bound=wire.Request)

_LONGEST_NAME = 100
_ENDS_WITH_PATH = re.compile(r" - at (?:`key` in )?`(\$[^`]*)`$")
_MISSING_FIELD = re.compile(r"^Object missing required field `([^`]*)`")
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[([0-9]+)\]")
_BYTE = re.compile(r"\(byte ([0-9]+)\)")
_FORBIDDEN_IN_PATHS = {"\0": "NUL", ":": "`:`", ",": "`,`", "\\": "`\\`"}


def invalid(pointer: str, detail: str) -> ProblemError:
    return ProblemError(Refusal.INVALID_FIELD.value, f"`{pointer}` {detail}", pointer=pointer)


# -- bodies ----------------------------------------------------------------------------------------


def body_of(raw: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """ProblemError: bad_request for what is no JSON, invalid_field for what breaks the schema."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error), raw) from error
    except msgspec.DecodeError as error:
        raise _malformed(str(error), raw) from error
    except UnicodeDecodeError as error:
        raise ProblemError(
            Refusal.BAD_REQUEST.value, "The body is not UTF-8, and JSON has to be."
        ) from error
    except RecursionError as error:
        raise ProblemError(Refusal.BAD_REQUEST.value, "The body is nested too deeply.") from error


def _malformed(message: str, raw: bytes) -> ProblemError:
    """The fast decoder tells the place roughly, the slow one exactly, where it finds it at all."""
    if not raw:
        return ProblemError(Refusal.BAD_REQUEST.value, "The body is empty; JSON is expected.")
    found = _BYTE.search(message)
    what = _BYTE.sub("", message).removeprefix("JSON is malformed: ").strip()
    position = min(int(found[1]), len(raw)) if found else len(raw)
    line = raw.count(b"\n", 0, position) + 1
    column = position - raw.rfind(b"\n", 0, position)
    try:
        json.loads(raw)
    except json.JSONDecodeError as error:
        what, line, column = error.msg.lower(), error.lineno, error.colno
    except (ValueError, RecursionError):
        pass
    return ProblemError(
        Refusal.BAD_REQUEST.value,
        f"The body is not JSON: {what} (line {line}, column {column}).",
    )


def _invalid_field(message: str, raw: bytes) -> ProblemError:
    path = _ENDS_WITH_PATH.search(message)
    pointer = pointer_of(path[1]) if path else ""
    if unknown := _UNKNOWN_FIELD.match(_ENDS_WITH_PATH.sub("", message)):
        return invalid(f"{pointer}/{_step(unknown[1])}", "is not a field that is known.")
    if missing := _MISSING_FIELD.match(message):
        return invalid(f"{pointer}/{_step(missing[1])}", "is missing.")
    if path and path[1].endswith("[...]"):
        pointer = _place_in_map(pointer, raw)
    what = _ENDS_WITH_PATH.sub("", message).replace(r"$(?!\\n)", "$")
    return invalid(pointer, f"is not valid: {what[0].lower()}{what[1:]}.")


def pointer_of(path: str) -> str:
    """`$.a.b[0]` as the JSON pointer `/a/b/0`."""
    return "".join(f"/{name or index}" for name, index in _STEP.findall(path))


def _step(name: str) -> str:
    """A name as one step of a JSON pointer, shortened where somebody sent a novel."""
    short = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
    return short.replace("~", "~0").replace("/", "~1")


def _place_in_map(pointer: str, raw: bytes) -> str:
    """The decoder does not name the key: it is the value that is no string, no line, or longest."""
    try:
        value: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return pointer
    for step in pointer.split("/")[1:]:
        value = value[int(step)] if isinstance(value, list) else value[step]
    strange = [key for key, held in value.items() if not isinstance(held, str)]
    strange += [key for key, held in value.items() if isinstance(held, str) and "\n" in held]
    strange += sorted(value, key=lambda key: len(str(value[key])), reverse=True)
    return f"{pointer}/{_step(strange[0])}"


# -- query parameters ------------------------------------------------------------------------------


def query_of(given: MultiMapping[str], kind: type[T]) -> T:
    """A parameter that is empty counts as not given, one that is not known or doubled is wrong."""
    values: dict[str, str] = {}
    for name, value in given.items():
        if name in values:
            raise _bad_parameter(name, "is given more than once.")
        values[name] = value
    known = _names_of(kind)
    for name in values.keys() - set(known):
        may_be = f"Known here: {', '.join(known)}." if known else "This path takes none."
        raise _bad_parameter(name, f"is not known. {may_be}")
    try:
        return msgspec.convert(
            {name: value for name, value in values.items() if value}, kind, strict=False
        )
    except msgspec.ValidationError as error:
        raise _invalid_parameter(str(error)) from error


@lru_cache
def _names_of(kind: type[wire.Request]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind))


def _invalid_parameter(message: str) -> ProblemError:
    path = _ENDS_WITH_PATH.search(message)
    name = path[1].removeprefix("$.") if path else ""
    what = _ENDS_WITH_PATH.sub("", message).replace(r"$(?!\\n)", "$")
    return _bad_parameter(name, f"is not valid: {what[0].lower()}{what[1:]}.")


def _bad_parameter(name: str, detail: str) -> ProblemError:
    short = _step(name)
    return ProblemError(
        Refusal.INVALID_FIELD.value, f"The query parameter `{short}` {detail}", parameter=short
    )


# -- what a schema cannot say ----------------------------------------------------------------------


def draft_of(wanted: wire.RunWanted) -> AssignmentDraft:
    """The assignment without its secrets, checked for its form; ProblemError invalid_field."""
    _check_command(wanted.command)
    environment = wanted.environment
    _check_text("/environment/dockerfile", environment.dockerfile, most=64 * 1024)
    name = _matches(wire.NAME_PATTERN, "a letter or `_`, then letters, digits and `_`, at most 255")
    label = _matches(wire.LABEL_PATTERN, "letters, digits, `_`, `.`, `/`, `-`, at most 128")
    _check_map("/environment/build_args", environment.build_args, name)
    _check_map("/env", wanted.env, name)
    _check_map("/secrets", wanted.secrets, name)
    _check_map("/labels", wanted.labels, label)
    for twice in sorted(wanted.env.keys() & wanted.secrets.keys()):
        raise invalid(f"/secrets/{_step(twice)}", "is in `env` too; name it once.")
    return AssignmentDraft(
        id=wanted.id or "",
        project=_project(wanted.project or ""),
        number=wanted.number,
        started_by=wanted.started_by,
        tier=wanted.tier or "",
        revision=wanted.files.revision if wanted.files else "",
        environment=Environment(
            image=environment.image or "",
            dockerfile=environment.dockerfile,
            build_args=environment.build_args,
            pull=environment.pull,
        ),
        command=tuple(wanted.command),
        env=wanted.env,
        mounts=_mounts(wanted.mounts),
        run_seconds=wanted.limits.run_seconds,
        keep_on=frozenset(wanted.results.keep_on),
        labels=wanted.labels,
    )


def prefetch_of(wanted: wire.PrefetchWanted) -> PrefetchWanted:
    """ProblemError invalid_field."""
    if not wanted.revisions and not wanted.images:
        raise invalid("/revisions", "and `images` are both empty: name what is to be fetched.")
    name = _matches(wire.NAME_PATTERN, "a letter or `_`, then letters, digits and `_`, at most 255")
    for index, image in enumerate(wanted.images):
        _check_text(f"/images/{index}/dockerfile", image.dockerfile, most=64 * 1024)
        _check_map(f"/images/{index}/build_args", image.build_args, name)
    return PrefetchWanted(
        revisions=tuple(wanted.revisions),
        environments=tuple(
            Environment(
                image=image.image or "", dockerfile=image.dockerfile, build_args=image.build_args
            )
            for image in wanted.images
        ),
    )


def _check_command(command: Sequence[str]) -> None:
    if not command[0]:
        raise invalid("/command/0", "is empty; the first word names the program.")
    total = 0
    for index, word in enumerate(command):
        total += _check_text(f"/command/{index}", word, most=wire.MAX_WORD_BYTES)
    if total > wire.MAX_COMMAND_BYTES:
        raise invalid(
            "/command", f"has {total} bytes; at most {wire.MAX_COMMAND_BYTES} are accepted."
        )


def _check_text(pointer: str, text: str, *, most: int) -> int:
    """The number of its bytes."""
    if "\0" in text:
        raise invalid(pointer, "holds a NUL character, which no program can be given.")
    size = len(text) if text.isascii() else len(text.encode())
    if size > most:
        raise invalid(pointer, f"has {size} bytes; at most {most} are accepted.")
    return size


def _matches(pattern: str, form: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda name: "" if compiled.match(name) else form


def _check_map(pointer: str, given: Mapping[str, str], wrong: Callable[[str], str]) -> None:
    total = 0
    for name, value in given.items():
        place = f"{pointer}/{_step(name)}"
        if form := wrong(name):
            raise invalid(place, f"has a name that is not accepted: {form}.")
        total += len(name) + _check_text(place, value, most=wire.MAX_WORD_BYTES)
    if total > wire.MAX_MAP_BYTES:
        raise invalid(pointer, f"has {total} bytes; at most {wire.MAX_MAP_BYTES} are accepted.")


def _project(project: str) -> str:
    if any(part in (".", "..") for part in project.split("/")):
        raise invalid("/project", "may not hold `.` or `..`.")
    if project.partition("/")[2] in ("head", "runs"):
        raise invalid("/project", "may not end in `/head` or `/runs`: the store uses these names.")
    return project


def _mounts(wanted: Sequence[wire.MountWanted]) -> tuple[Mount, ...]:
    mounts: list[Mount] = []
    for index, mount in enumerate(wanted):
        source = _source(f"/mounts/{index}", mount)
        target = _path(f"/mounts/{index}/target", mount.target)
        if target == "/":
            raise invalid(f"/mounts/{index}/target", "may not be the container's root.")
        if any(target == other.target for other in mounts):
            raise invalid(f"/mounts/{index}/target", f"is mounted twice: {target}.")
        for other in mounts:
            if target.startswith(f"{other.target}/") or other.target.startswith(f"{target}/"):
                raise invalid(
                    f"/mounts/{index}/target",
                    f"and {other.target} lie within each other; mount them side by side.",
                )
        mounts.append(
            Mount(
                source=source,
                target=target,
                read_only=mount.read_only,
                revision=mount.revision or "",
            )
        )
    return tuple(mounts)


def _source(pointer: str, mount: wire.MountWanted) -> str:
    """The host's path; none for a revision."""
    if (mount.source is None) == (mount.revision is None):
        raise invalid(pointer, "has to name either a `source` or a `revision`.")
    if mount.source is not None:
        return _path(f"{pointer}/source", mount.source)
    if not mount.read_only:
        raise invalid(
            f"{pointer}/read_only", "has to be true: a revision never changes; mount it read-only."
        )
    return ""


def _path(pointer: str, path: str) -> str:
    """Absolute and in one spelling: `/data/` is `/data`."""
    if not path.startswith("/"):
        raise invalid(pointer, "has to be an absolute path.")
    for character, name in _FORBIDDEN_IN_PATHS.items():
        if character in path:
            raise invalid(pointer, f"may not hold {name}.")
    if any(ord(character) < ord(" ") for character in path):
        raise invalid(pointer, "may not hold control characters.")
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise invalid(pointer, "may not hold `.` or `..`.")
    return "/" + "/".join(parts)

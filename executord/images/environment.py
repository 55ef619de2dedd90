"""What an environment is: its key, from which its image is known without building it."""

import hashlib
import json
import re
from collections.abc import Mapping

from executord.core.reasons import Fault, FaultError, Reason

_KEY_VERSION = 1
_REPOSITORY = "executord/env"
_FIRST_WORD = re.compile(r"\s*([A-Za-z]+)")
_IMAGE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")


def environment_key(
    *, base_id: str, dockerfile: str, build_args: Mapping[str, str], platform: str
) -> str:
    """64 hex digits: SHA-256 over everything that decides what the image will hold.

    `base_id` is the engine's id of the base image, so that a tag that has moved gives another key.
    """
    content = {
        "version": _KEY_VERSION,
        "base": base_id,
        "instructions": normalised(dockerfile),
        "build_args": dict(build_args),
        "platform": platform,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def environment_tag(key: str) -> str:
    return f"{_REPOSITORY}:{key}"


def registry_reference(registry: str, key: str) -> str:
    return f"{registry.rstrip('/')}/env:{key}"


def normalised(dockerfile: str) -> str:
    """The instructions without comments, blank lines and blanks at the ends of lines.

    None of these means anything to a builder, except within a here-document: a text that may hold
    one is taken as it stands.
    """
    lines = dockerfile.replace("\r\n", "\n").split("\n")
    if "<<" in dockerfile:
        return "\n".join(lines).strip("\n")
    kept = (line.rstrip() for line in lines if not line.lstrip().startswith("#"))
    return "\n".join(line for line in kept if line)


def check_instructions(dockerfile: str) -> None:
    """FaultError BUILD_FAILED for a text that cannot be put on top of a base image."""
    first = _FIRST_WORD.match(normalised(dockerfile))
    if first and first[1].upper() == "FROM":
        raise FaultError(
            Fault(
                Reason.BUILD_FAILED,
                "`environment.dockerfile` begins with FROM. Name the base image in"
                " `environment.image`, and leave that line out: the instructions are put on top"
                " of it.",
            )
        )


def is_image_id(reference: str) -> bool:
    """Whether it is an engine's own id, which no registry knows."""
    return _IMAGE_ID.fullmatch(reference) is not None

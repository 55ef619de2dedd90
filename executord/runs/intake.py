"""From a draft to an assignment: defaults filled in, the node's rules applied."""

import asyncio
import hashlib
import hmac
import os
import secrets as randomness
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Assignment, Environment, Mount
from executord.runs.context import RunRules
from executord.runs.drafts import AssignmentDraft

DEFAULT_PROJECT = "local/scratch"


async def assignment_of(
    draft: AssignmentDraft, rules: RunRules, *, secret_names: tuple[str, ...], owner_uid: int
) -> Assignment:
    """Raises RefusedError for what this node cannot or must not do."""
    environment = draft.environment
    image = environment.image or rules.default_image
    if not image:
        raise RefusedError(
            Refusal.IMAGE_REQUIRED,
            "No image is named, and this node has no default: set `environment.image`.",
            pointer="/environment/image",
        )
    return Assignment(
        id=draft.id or new_run_id(),
        project=draft.project or DEFAULT_PROJECT,
        command=draft.command,
        environment=Environment(
            image=image,
            dockerfile=environment.dockerfile,
            build_args=environment.build_args,
            pull=environment.pull,
        ),
        tier=draft.tier or rules.default_tier,
        number=draft.number,
        started_by=draft.started_by,
        revision=draft.revision,
        env=draft.env,
        secret_names=secret_names,
        mounts=await _allowed_mounts(draft.mounts, rules.allowed_mounts),
        run_seconds=draft.run_seconds,
        keep_on=draft.keep_on,
        labels=draft.labels,
        owner_uid=owner_uid,
    )


async def _allowed_mounts(mounts: tuple[Mount, ...], roots: tuple[Path, ...]) -> tuple[Mount, ...]:
    if not mounts:
        return ()
    return await asyncio.to_thread(
        lambda: tuple(_allowed_mount(mount, index, roots) for index, mount in enumerate(mounts))
    )


def _allowed_mount(mount: Mount, index: int, roots: tuple[Path, ...]) -> Mount:
    """The mount with its links resolved, so that what is checked is what is mounted."""
    pointer = f"/mounts/{index}/source"
    source = Path(os.path.realpath(mount.source))
    if not any(source.is_relative_to(os.path.realpath(root)) for root in roots):
        named = ", ".join(str(root) for root in roots) or "none"
        raise RefusedError(
            Refusal.MOUNT_NOT_ALLOWED,
            f"{mount.source} lies outside the roots that may be mounted (`runs.allowed_mounts`: "
            f"{named}).",
            pointer=pointer,
        )
    if not source.exists():
        raise RefusedError(
            Refusal.MOUNT_NOT_ALLOWED,
            f"{mount.source} does not exist on this node.",
            pointer=pointer,
        )
    return Mount(source=str(source), target=mount.target, read_only=mount.read_only)


def new_run_id() -> str:
    """Sorts by time; two in the same millisecond differ in 40 random bits."""
    return f"r-{int(time.time() * 1000):011x}-{randomness.token_hex(5)}"


def fingerprint(draft: AssignmentDraft, secrets: Mapping[str, str], key: bytes) -> str:
    """Tells a repeated request from another one under the same id.

    Keyed, so that nobody who reads the journal can guess a secret by trying.
    """
    content = msgspec.json.encode((draft, dict(secrets)), order="deterministic")
    return hmac.new(key, content, hashlib.sha256).hexdigest()

"""From a draft to an assignment: defaults filled in, the node's rules applied."""

import hashlib
import hmac
import secrets as randomness
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Assignment, Environment, Mount
from executord.runs.context import RunRules
from executord.runs.drafts import AssignmentDraft
from executord.runs.host_mounts import allowed_mounts

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
        mounts=await allowed_mounts(draft.mounts, rules),
        run_seconds=draft.run_seconds,
        keep_on=draft.keep_on,
        labels=draft.labels,
        owner_uid=owner_uid,
    )


def new_run_id() -> str:
    """Sorts by time; two in the same millisecond differ in 40 random bits."""
    return f"r-{int(time.time() * 1000):011x}-{randomness.token_hex(5)}"


def fingerprint(draft: AssignmentDraft, secrets: Mapping[str, str], key: bytes) -> str:
    """Tells a repeated request from another one under the same id.

    Keyed, so that nobody who reads the journal can guess a secret by trying.
    """
    mounts = tuple(_as_it_was_written(mount) for mount in draft.mounts)
    same = replace(draft, mounts=mounts)  # type: ignore[arg-type]
    content = msgspec.json.encode((same, dict(secrets)), order="deterministic")
    return hmac.new(key, content, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _HostMount:
    source: str
    target: str
    read_only: bool


def _as_it_was_written(mount: Mount) -> Mount | _HostMount:
    """Fingerprints are kept: a mount of the host counts as it did before there were others."""
    if mount.revision:
        return mount
    return _HostMount(source=mount.source, target=mount.target, read_only=mount.read_only)

"""Why a run ended: a closed list, with whose side each reason is on and what to do about it.

`Fault` is how a part tells that something went wrong. A fault is data: it travels in events, is
kept in the run, and decides between Failed (the user's side) and Error (anything outside it).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Side(StrEnum):
    """Who has to act: the person whose code it is, the people who run the node, or nobody."""

    NOBODY = "nobody"
    USER = "user"
    PLATFORM = "platform"


class Reason(StrEnum):
    # nobody's fault
    COMPLETED = "completed"
    STOPPED_BY_REQUEST = "stopped_by_request"
    # the user's side: Failed
    EXIT_CODE = "exit_code"
    KILLED_BY_SIGNAL = "killed_by_signal"
    OUT_OF_MEMORY = "out_of_memory"
    RUN_SECONDS_EXCEEDED = "run_seconds_exceeded"
    COMMAND_NOT_FOUND = "command_not_found"
    COMMAND_NOT_EXECUTABLE = "command_not_executable"
    BUILD_FAILED = "build_failed"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_DENIED = "image_denied"
    IMAGE_UNUSABLE = "image_unusable"
    # anything outside the user's code: Error
    REVISION_NOT_FOUND = "revision_not_found"
    FILES_CORRUPT = "files_corrupt"
    STORE_UNAVAILABLE = "store_unavailable"
    STORE_DENIED = "store_denied"
    DISK_FULL = "disk_full"
    WORKSPACE_FAILED = "workspace_failed"
    REGISTRY_UNAVAILABLE = "registry_unavailable"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    ENGINE_REFUSED = "engine_refused"
    ENGINE_RESTARTED = "engine_restarted"
    CONTAINER_LOST = "container_lost"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    MOUNT_UNUSABLE = "mount_unusable"
    SECRETS_LOST = "secrets_lost"
    TIER_GONE = "tier_gone"
    JOURNAL_DAMAGED = "journal_damaged"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reason means: the side that has to act, one sentence, and what to do next."""

    side: Side
    sentence: str
    advice: str


MEANINGS: dict[Reason, Meaning] = {
    Reason.COMPLETED: Meaning(Side.NOBODY, "The command ended with exit code 0.", ""),
    Reason.STOPPED_BY_REQUEST: Meaning(Side.NOBODY, "The run was stopped on request.", ""),
    Reason.EXIT_CODE: Meaning(
        Side.USER,
        "The command ended with an exit code other than 0.",
        "Read the end of the console: `executorctl logs RUN`.",
    ),
    Reason.KILLED_BY_SIGNAL: Meaning(
        Side.USER,
        "The command was ended by a signal that neither executord nor the memory limit sent.",
        "Look in the console and in the code for what sends it; a crash in native code is usual.",
    ),
    Reason.OUT_OF_MEMORY: Meaning(
        Side.USER,
        "The command was killed because it reached the memory limit of its tier.",
        "Use less memory, or submit the run to a tier with more.",
    ),
    Reason.RUN_SECONDS_EXCEEDED: Meaning(
        Side.USER,
        "The command was ended because it used up its time limit.",
        "Raise `limits.run_seconds`, or make the work shorter.",
    ),
    Reason.COMMAND_NOT_FOUND: Meaning(
        Side.USER,
        "The command does not exist in the image.",
        "Check the first word of `command`, and whether the image holds that program.",
    ),
    Reason.COMMAND_NOT_EXECUTABLE: Meaning(
        Side.USER,
        "The command exists but cannot be executed.",
        "Make the file executable, check its first line (#!), and check the architecture.",
    ),
    Reason.BUILD_FAILED: Meaning(
        Side.USER,
        "The environment's Dockerfile does not build.",
        "Read the build output in the console and mend the failing instruction.",
    ),
    Reason.IMAGE_NOT_FOUND: Meaning(
        Side.USER,
        "The environment's image does not exist.",
        "Check its name and tag; with `pull: never` it has to be on the node already.",
    ),
    Reason.IMAGE_DENIED: Meaning(
        Side.USER,
        "The registry refuses to hand out the environment's image.",
        "Check the image's name and the credentials for its registry.",
    ),
    Reason.IMAGE_UNUSABLE: Meaning(
        Side.USER,
        "A container cannot be made from the environment's image.",
        "Check that the image is made for this node's architecture and holds a shell or a program.",
    ),
    Reason.REVISION_NOT_FOUND: Meaning(
        Side.PLATFORM,
        "The revision that the run asks for is not in the file store.",
        "Push the project again, and check that node and client use the same store.",
    ),
    Reason.FILES_CORRUPT: Meaning(
        Side.PLATFORM,
        "A file or tree in the store does not have the content its digest promises.",
        "Restore the named object in the store, or push the project again.",
    ),
    Reason.STORE_UNAVAILABLE: Meaning(
        Side.PLATFORM,
        "The file store cannot be reached.",
        "Check the store, its disk or the network to it, then submit the run again.",
    ),
    Reason.STORE_DENIED: Meaning(
        Side.PLATFORM,
        "The file store refuses this node.",
        "Check the node's credentials for the store.",
    ),
    Reason.DISK_FULL: Meaning(
        Side.PLATFORM,
        "The node's disk is full.",
        "Free space under the state directory, or lower the limits of the caches.",
    ),
    Reason.WORKSPACE_FAILED: Meaning(
        Side.PLATFORM,
        "The run's working directory could not be made.",
        "Check the file system under the state directory.",
    ),
    Reason.REGISTRY_UNAVAILABLE: Meaning(
        Side.PLATFORM,
        "The image's registry cannot be reached.",
        "Check the registry and the network to it, then submit the run again.",
    ),
    Reason.ENGINE_UNAVAILABLE: Meaning(
        Side.PLATFORM,
        "The container engine does not answer.",
        "Check the engine's service and its log.",
    ),
    Reason.ENGINE_REFUSED: Meaning(
        Side.PLATFORM,
        "The container engine refused what was asked of it.",
        "Read the engine's message in the evidence, and its log.",
    ),
    Reason.ENGINE_RESTARTED: Meaning(
        Side.PLATFORM,
        "The container engine or the host restarted and took the container with it.",
        "Submit the run again; turn on the engine's live-restore.",
    ),
    Reason.CONTAINER_LOST: Meaning(
        Side.PLATFORM,
        "The run's container was removed by somebody else.",
        "Find out what removes containers on this node, then submit the run again.",
    ),
    Reason.HOST_OUT_OF_MEMORY: Meaning(
        Side.PLATFORM,
        "The node ran out of memory and the kernel killed the command below its own limit.",
        "Lower what the node's tiers promise, or find what else uses its memory.",
    ),
    Reason.MOUNT_UNUSABLE: Meaning(
        Side.PLATFORM,
        "A directory of the node that the run mounts is not what it was at its acceptance.",
        "See what has been moved, replaced or forbidden, and submit the run again.",
    ),
    Reason.SECRETS_LOST: Meaning(
        Side.PLATFORM,
        "The run's secrets are gone, since they are kept in memory only and the node restarted.",
        "Submit the run again with its secrets.",
    ),
    Reason.TIER_GONE: Meaning(
        Side.PLATFORM,
        "The node no longer offers the tier that the run was accepted for.",
        "Give the tier back in the node's configuration, or submit the run to another one.",
    ),
    Reason.JOURNAL_DAMAGED: Meaning(
        Side.PLATFORM,
        "The run's record in the journal is damaged.",
        "Check the node's disk; submit the run again.",
    ),
    Reason.INTERNAL: Meaning(
        Side.PLATFORM,
        "executord itself made a mistake.",
        "Please report it with the evidence and the daemon's log.",
    ),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that went wrong, as data.

    `detail` is a sentence for a person that names the thing concerned (key, path, digest, image).
    `evidence` holds what was seen: flat, JSON-ready, free of secrets.
    """

    reason: Reason
    detail: str
    evidence: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)

    @property
    def side(self) -> Side:
        return MEANINGS[self.reason].side


class FaultError(Exception):
    """Carries a fault up through a part's own calls; stages turn it into an event."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.reason}: {fault.detail}")
        self.fault = fault

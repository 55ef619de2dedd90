"""Translates what goes wrong at the engine into faults: by HTTP status and message.

The engine answers with prose, and uses 500 for nearly everything that a registry says, so the
tables below look for words. They were collected from Docker 20.10; a message that nobody knows
is the engine's refusal, with the message as evidence.
"""

import re

import aiohttp

from executord.core.reasons import Fault, FaultError, Reason

_SHOWN_MESSAGE = 2000
NOT_REACHED = 900  # what aiodocker calls a connection that could not be made

_ENGINE_IS_DOWN = (
    "connection error: desc",
    "transport is closing",
    "daemon is shutting down",
    "context deadline exceeded",
    "context canceled",
)
_DISK_IS_FULL = ("no space left on device", "disk quota exceeded")
_DENIED = (
    "denied",
    "unauthorized",
    "no basic auth credentials",
    "authentication required",
    "403 forbidden",
    "incorrect username or password",
)
_NOT_FOUND = (
    "manifest unknown",
    "name unknown",
    "no such image",
    "invalid reference format",
    "invalid repository name",
    "repository name not known",
    "not found",
    "does not exist",
)
_WRONG_PLATFORM = (
    "no matching manifest for",
    "does not match the specified platform",
    "does not provide the specified platform",
    "cannot be used on this platform",
    "unsupported media type",
)
_REGISTRY_IS_DOWN = (
    "dial tcp",
    "dial unix",
    "lookup ",
    "no such host",
    "connection refused",
    "connection reset",
    "broken pipe",
    "network is unreachable",
    "no route to host",
    "i/o timeout",
    "timeout",
    "deadline exceeded",
    "eof",
    "x509",
    "tls:",
    "http response to https client",
    "toomanyrequests",
    "too many requests",
    "received unexpected http status",
    "internal server error",
    "bad gateway",
    "service unavailable",
    "server misbehaving",
    "filesystem layer verification failed",
)
_NO_PROGRAM = ("executable file not found", "no such file or directory")
_NO_RIGHT = ("permission denied", "exec format error", "is a directory")
_NO_WORKSPACE = ("error while mounting volume", "failed to mount local volume")
_INIT_FAILED = re.compile(r"\[FATAL tini \(\d+\)\] (exec .{1,4000} failed: .+)")


def unavailable(doing: str, why: str) -> FaultError:
    """The engine gave no answer that means anything: nobody knows what became of it."""
    return FaultError(
        Fault(
            Reason.ENGINE_UNAVAILABLE,
            f"Could not {doing}: {why}",
            {"engine_error": why[:_SHOWN_MESSAGE]},
        )
    )


def refused(doing: str, message: str, *, status: int = 0) -> FaultError:
    return _fault(Reason.ENGINE_REFUSED, doing, message, status)


def of_exception(doing: str, error: BaseException) -> FaultError:
    """A connection, a reply or a deadline that broke."""
    if isinstance(error, TimeoutError):
        return unavailable(doing, "the container engine did not answer in time.")
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return unavailable(doing, "the container engine hung up in the middle of its answer.")
    if isinstance(error, aiohttp.ClientError | OSError):
        return unavailable(doing, f"the container engine cannot be reached ({error}).")
    shown = f"{type(error).__name__}: {error}"
    return unavailable(doing, f"the container engine's answer makes no sense ({shown}).")


def of_reply(doing: str, status: int, message: str) -> FaultError:
    """An answer with an error's status, to a call that is not about a registry."""
    said = message.lower()
    if status == NOT_REACHED or _says(said, _ENGINE_IS_DOWN):
        return unavailable(doing, message)
    if _says(said, _DISK_IS_FULL):
        return _fault(Reason.DISK_FULL, doing, message, status)
    if "no such image" in said:
        return _fault(Reason.IMAGE_NOT_FOUND, doing, message, status)
    if "no such container" in said:
        return _fault(Reason.CONTAINER_LOST, doing, message, status)
    return refused(doing, message, status=status)


def of_start(doing: str, status: int, message: str) -> FaultError:
    """A container that could not be started; its command never ran."""
    said = message.lower()
    if _says(said, _NO_WORKSPACE):
        return _fault(Reason.WORKSPACE_FAILED, doing, message, status)
    if status == 400 and "error mounting" not in said and "exec:" in said:
        if _says(said, _NO_PROGRAM):
            return _fault(Reason.COMMAND_NOT_FOUND, doing, message, status)
        if _says(said, _NO_RIGHT):
            return _fault(Reason.COMMAND_NOT_EXECUTABLE, doing, message, status)
    return of_reply(doing, status, message)


def of_create(doing: str, status: int, message: str) -> FaultError:
    """A container that could not be made; an image without any command is the user's matter."""
    said = message.lower()
    if "no command specified" in said or _says(said, _WRONG_PLATFORM):
        return _fault(Reason.IMAGE_UNUSABLE, doing, message, status)
    return of_reply(doing, status, message)


def of_build_request(doing: str, status: int, message: str) -> FaultError:
    """A build that was refused before its first step: a Dockerfile that cannot be parsed."""
    if status == 400:
        return _fault(Reason.BUILD_FAILED, doing, message, status)
    return of_reply(doing, status, message)


def of_registry(doing: str, status: int, message: str) -> FaultError:
    """A pull or push that failed: the image, the registry, or the engine itself."""
    said = message.lower()
    reason = Reason.ENGINE_REFUSED
    if status == NOT_REACHED:
        return unavailable(doing, message)
    if _says(said, _DISK_IS_FULL):
        reason = Reason.DISK_FULL
    elif _says(said, _WRONG_PLATFORM):
        reason = Reason.IMAGE_UNUSABLE
    elif _is_about_reaching(said):
        reason = Reason.REGISTRY_UNAVAILABLE
    elif _says(said, _DENIED):
        reason = Reason.IMAGE_DENIED
    elif status == 404 or _says(said, _NOT_FOUND):
        reason = Reason.IMAGE_NOT_FOUND
    elif _says(said, _REGISTRY_IS_DOWN):
        reason = Reason.REGISTRY_UNAVAILABLE
    elif _says(said, _ENGINE_IS_DOWN):
        reason = Reason.ENGINE_UNAVAILABLE
    return _fault(reason, doing, message, status)


def _is_about_reaching(said: str) -> bool:
    """A failed connection, whose message may hold any words in the URL that it quotes."""
    return _says(said, ("dial tcp", "no such host", "connection refused", "tls handshake"))


def init_failure(output: str) -> str:
    """What the container's init says when it cannot execute the command, or ""."""
    match = _INIT_FAILED.search(output)
    return match[1].strip() if match else ""


def _says(said: str, words: tuple[str, ...]) -> bool:
    return any(word in said for word in words)


def _fault(reason: Reason, doing: str, message: str, status: int) -> FaultError:
    shown = message.strip()[:_SHOWN_MESSAGE]
    return FaultError(
        Fault(
            reason,
            f"Could not {doing}: {shown}",
            {"engine_status": status, "engine_message": shown},
        )
    )

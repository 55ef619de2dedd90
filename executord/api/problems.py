"""Problem documents (RFC 9457): every error that leaves the socket has one of these codes."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from uuid import uuid4

import msgspec
import structlog

from executord.core.reasons import FaultError, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.ports import DiskFullError, JournalError

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/problem+json"

REFUSAL_STATUS: dict[Refusal, HTTPStatus] = {
    Refusal.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    Refusal.INVALID_FIELD: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.UNKNOWN_TIER: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.TOO_LARGE_FOR_NODE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.MOUNT_NOT_ALLOWED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.IMAGE_REQUIRED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Refusal.UNKNOWN_RUN: HTTPStatus.NOT_FOUND,
    Refusal.UNKNOWN_REVISION: HTTPStatus.NOT_FOUND,
    Refusal.ID_CONFLICT: HTTPStatus.CONFLICT,
    Refusal.RUN_OVER: HTTPStatus.CONFLICT,
    Refusal.NOTHING_TO_SYNC: HTTPStatus.CONFLICT,
    Refusal.QUEUE_FULL: HTTPStatus.TOO_MANY_REQUESTS,
    Refusal.DRAINING: HTTPStatus.SERVICE_UNAVAILABLE,
    Refusal.SHUTTING_DOWN: HTTPStatus.SERVICE_UNAVAILABLE,
    Refusal.DISK_FULL: HTTPStatus.INSUFFICIENT_STORAGE,
    Refusal.NOT_IMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
}

NOT_FOUND = "not_found"
METHOD_NOT_ALLOWED = "method_not_allowed"
REQUEST_TIMEOUT = "request_timeout"
BODY_TOO_LARGE = "body_too_large"
UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
EXPECTATION_FAILED = "expectation_failed"
TOO_MANY_CONNECTIONS = "too_many_connections"
NOT_READY = "not_ready"
UNAVAILABLE = "unavailable"
INTERNAL = "internal"

STATUS_OF: dict[str, HTTPStatus] = {
    **{refusal.value: status for refusal, status in REFUSAL_STATUS.items()},
    NOT_FOUND: HTTPStatus.NOT_FOUND,
    METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    REQUEST_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    EXPECTATION_FAILED: HTTPStatus.EXPECTATION_FAILED,
    TOO_MANY_CONNECTIONS: HTTPStatus.TOO_MANY_REQUESTS,
    NOT_READY: HTTPStatus.SERVICE_UNAVAILABLE,
    UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}

TITLE_OF: dict[str, str] = {
    Refusal.BAD_REQUEST: "The request is not well formed",
    Refusal.INVALID_FIELD: "A field of the request is not valid",
    Refusal.UNKNOWN_TIER: "There is no such tier",
    Refusal.TOO_LARGE_FOR_NODE: "The node is too small for this",
    Refusal.MOUNT_NOT_ALLOWED: "This path may not be mounted",
    Refusal.IMAGE_REQUIRED: "No image is named",
    Refusal.FORBIDDEN: "You may not do this",
    Refusal.UNKNOWN_RUN: "There is no such run",
    Refusal.UNKNOWN_REVISION: "There is no such revision",
    Refusal.ID_CONFLICT: "Another run has this id",
    Refusal.RUN_OVER: "The run has ended",
    Refusal.NOTHING_TO_SYNC: "The run has nothing to sync now",
    Refusal.QUEUE_FULL: "The queue is full",
    Refusal.DRAINING: "The node takes no new runs",
    Refusal.SHUTTING_DOWN: "The daemon is leaving",
    Refusal.DISK_FULL: "The node's disk is full",
    Refusal.NOT_IMPLEMENTED: "This is not implemented yet",
    NOT_FOUND: "There is nothing at this path",
    METHOD_NOT_ALLOWED: "The path does not know this method",
    REQUEST_TIMEOUT: "The request took too long to arrive",
    BODY_TOO_LARGE: "The body is too large",
    UNSUPPORTED_MEDIA_TYPE: "The body is not in a form that is understood",
    EXPECTATION_FAILED: "The expectation cannot be met",
    TOO_MANY_CONNECTIONS: "Too many connections",
    NOT_READY: "The node is not ready",
    UNAVAILABLE: "A part of the node cannot do this now",
    INTERNAL: "executord made a mistake",
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An error, as RFC 9457 has it.

    `code` is stable. `pointer` is the JSON pointer of the field of the body that is concerned,
    `parameter` the name of the query parameter. `correlation_id` finds a mistake of the daemon in
    its log. `retry_after_seconds` says when trying again may help.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    pointer: str = ""
    parameter: str = ""
    reason: str = ""
    correlation_id: str = ""
    retry_after_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A problem, ready to be sent, with the headers that belong to it."""

    problem: Problem
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        return self.problem.status


class ProblemError(Exception):
    """The request ends with this problem."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        pointer: str = "",
        parameter: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.told = tell(code, detail, pointer=pointer, parameter=parameter, headers=headers)


def tell(
    code: str,
    detail: str,
    *,
    pointer: str = "",
    parameter: str = "",
    reason: str = "",
    correlation_id: str = "",
    retry_after_seconds: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Told:
    extra = dict(headers or {})
    if retry_after_seconds is not None:
        extra["Retry-After"] = str(retry_after_seconds)
    problem = Problem(
        type=f"urn:executord:problem:{code}",
        title=TITLE_OF[code],
        status=STATUS_OF[code].value,
        detail=detail,
        code=code,
        pointer=pointer,
        parameter=parameter,
        reason=reason,
        correlation_id=correlation_id,
        retry_after_seconds=retry_after_seconds,
    )
    return Told(problem, extra)


_RETRY_AFTER_SECONDS = {
    Refusal.QUEUE_FULL: 5,
    Refusal.SHUTTING_DOWN: 5,
    Refusal.DRAINING: 60,
    Refusal.DISK_FULL: 60,
}


def of_error(error: Exception) -> Told | None:
    """The problem that an error of the parts amounts to; None for one that nobody foresaw."""
    match error:
        case ProblemError():
            return error.told
        case RefusedError():
            wait = error.retry_after_seconds
            return tell(
                error.code.value,
                error.detail,
                pointer=error.pointer,
                retry_after_seconds=_RETRY_AFTER_SECONDS.get(error.code) if wait is None else wait,
            )
        case DiskFullError():
            return tell(
                Refusal.DISK_FULL.value,
                "The node's disk is full: nothing can be recorded, so nothing was changed.",
                retry_after_seconds=_RETRY_AFTER_SECONDS[Refusal.DISK_FULL],
            )
        case JournalError():
            return tell(
                UNAVAILABLE,
                "The node's journal cannot be used; the daemon stops. Its log says why.",
            )
        case FaultError():
            return _of_fault(error)
        case _:
            return None


def _of_fault(error: FaultError) -> Told | None:
    fault = error.fault
    if fault.reason is Reason.INTERNAL:
        return None
    return tell(UNAVAILABLE, fault.detail, reason=fault.reason.value)


def of_mistake(error: Exception, **seen: object) -> Told:
    """For an error that nobody foresaw: nothing of the inside leaves, the log has all of it."""
    correlation_id = uuid4().hex
    text = "".join(traceback.format_exception(error))  # never with local values: secrets are there
    log.error("api.internal_error", correlation_id=correlation_id, exception=text, **seen)
    return tell(
        INTERNAL,
        f"executord made a mistake; its log says more under {correlation_id}.",
        correlation_id=correlation_id,
    )


def encode(problem: Problem) -> bytes:
    try:
        return msgspec.json.encode(problem)
    except UnicodeEncodeError:  # a name that is not UTF-8, from a path or an engine's message
        readable = problem.detail.encode("utf-8", "replace").decode()
        return msgspec.json.encode(msgspec.structs.replace(problem, detail=readable))

"""Why a request is refused: a closed list of codes, each a promise of the outside contract."""

from enum import StrEnum


class Refusal(StrEnum):
    BAD_REQUEST = "bad_request"
    INVALID_FIELD = "invalid_field"
    UNKNOWN_TIER = "unknown_tier"
    TOO_LARGE_FOR_NODE = "too_large_for_node"
    MOUNT_NOT_ALLOWED = "mount_not_allowed"
    IMAGE_REQUIRED = "image_required"
    FORBIDDEN = "forbidden"
    UNKNOWN_RUN = "unknown_run"
    UNKNOWN_REVISION = "unknown_revision"
    ID_CONFLICT = "id_conflict"
    RUN_OVER = "run_over"
    NOTHING_TO_SYNC = "nothing_to_sync"
    QUEUE_FULL = "queue_full"
    DRAINING = "draining"
    DISK_FULL = "disk_full"
    SHUTTING_DOWN = "shutting_down"
    NOT_IMPLEMENTED = "not_implemented"


class RefusedError(Exception):
    """A request that cannot be granted; it changed nothing.

    `detail` says what was asked, why it is refused and what would be granted. `pointer` is the
    JSON pointer of the field concerned, or "". `retry_after_seconds` is set where waiting helps.
    """

    def __init__(
        self,
        code: Refusal,
        detail: str,
        *,
        pointer: str = "",
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.pointer = pointer
        self.retry_after_seconds = retry_after_seconds

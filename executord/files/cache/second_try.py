"""Work that finds the disk full, although room was made for it, is done once more."""

from collections.abc import Callable
from typing import TypeVar

import structlog

from executord.core.reasons import FaultError, Reason
from executord.files.cache.promises import Promise
from executord.files.cache.spare_room import SpareRoom
from executord.files.cache.sweeper import Sweeper
from executord.files.faults import disk

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


def again_if_full(
    work: Callable[[Promise], _T],
    sweeper: Sweeper,
    spare: SpareRoom,
    may_evict: Callable[[], bool] = lambda: True,
) -> _T:
    """`work` leaves nothing half-made where it fails. Blocks. Raises what it raises."""
    with sweeper.promises.one() as promise:
        try:
            return work(promise)
        except FaultError as error:
            if not _is_the_disks(error) or not may_evict():
                raise
            log.warning("cache.disk_was_full", detail=error.fault.detail)
        spare.let_go_of_all()
        with disk("make room in the file cache"):
            sweeper.make_room_again(promise)
        return work(promise)


def _is_the_disks(error: FaultError) -> bool:
    """A refusal to begin at all has no errno: then nothing is left that could be evicted."""
    return error.fault.reason is Reason.DISK_FULL and "errno" in error.fault.evidence

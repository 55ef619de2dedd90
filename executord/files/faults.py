"""Foreign exceptions turned into faults, at the place where disk and store are touched."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from executord.core.reasons import Fault, FaultError, Reason

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def fault(reason: Reason, detail: str, **evidence: str | float | bool | None) -> FaultError:
    return FaultError(Fault(reason, detail, evidence))


def corrupt(detail: str, **evidence: str | float | bool | None) -> FaultError:
    return fault(Reason.FILES_CORRUPT, detail, **evidence)


def is_full(error: OSError) -> bool:
    return error.errno in _NO_SPACE


def from_os_error(error: OSError, doing: str) -> FaultError:
    """A local disk that refuses: full, or broken in some other way. `doing` completes "Cannot"."""
    name = errno.errorcode.get(error.errno or 0, "unknown")
    where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
    reason = Reason.DISK_FULL if is_full(error) else Reason.WORKSPACE_FAILED
    return fault(reason, f"Cannot {doing}{where}: {error.strerror}.", errno=name)


@contextmanager
def disk(doing: str) -> Iterator[None]:
    """OSError inside becomes DISK_FULL or WORKSPACE_FAILED."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error


class CancelledWorkError(Exception):
    """The work in a thread was given up because nobody waits for it any more."""

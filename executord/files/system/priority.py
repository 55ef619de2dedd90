"""Threads that give way to everybody else."""

import ctypes
import platform

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_WHO_PROCESS = 1
_CLASS_IDLE = 3 << 13

_libc = ctypes.CDLL(None, use_errno=True)


def set_idle(thread: int, *, idle: bool) -> None:
    """Whether that thread (its native id) gets the disk only when nobody else wants it.

    Never its share of the processor: a thread that waits for that while it holds the interpreter's
    lock holds up the event loop. Nothing happens where the kernel knows no such thing, or the
    thread is gone.
    """
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        _libc.syscall(number, _WHO_PROCESS, thread, _CLASS_IDLE if idle else 0)

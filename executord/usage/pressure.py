"""Whether the host has to wait for memory or disk already, so that nothing more should be added.

Pressure stall information: https://docs.kernel.org/accounting/psi.html. A kernel without it is
asked for its free memory instead.
"""

from pathlib import Path

import psutil

_MOST_MEMORY_PERCENT = 10.0
_MOST_IO_PERCENT = 60.0
_LEAST_FREE_MEMORY = 0.05
_LEAST_FREE_MEMORY_BYTES = 256 << 20


class Pressure:
    """`directory` is the kernel's `/proc/pressure`."""

    def __init__(self, directory: Path = Path("/proc/pressure")) -> None:
        self._directory = directory

    def why_not(self) -> str:
        """Why work that can wait should wait; "" where it need not. Costs some 20 µs."""
        memory = self._waiting("memory")
        if memory is None:
            return _short_of_memory()
        if memory > _MOST_MEMORY_PERCENT:
            return f"tasks wait for memory {memory:g} % of the time"
        io = self._waiting("io")
        if io is not None and io > _MOST_IO_PERCENT:
            return f"tasks wait for the disk {io:g} % of the time"
        return _short_of_memory()

    def _waiting(self, what: str) -> float | None:
        """The share of the last ten seconds in which some task waited, in percent."""
        try:
            text = (self._directory / what).read_text(encoding="ascii")
            some = next(line for line in text.splitlines() if line.startswith("some "))
            return float(some.split("avg10=")[1].split()[0])
        except (OSError, ValueError, IndexError, StopIteration):
            return None


def _short_of_memory() -> str:
    memory = psutil.virtual_memory()
    least = min(_LEAST_FREE_MEMORY_BYTES, int(memory.total * _LEAST_FREE_MEMORY))
    if memory.available >= least:
        return ""
    return f"only {memory.available >> 20} MiB of memory are available"

"""What the whole host uses, by psutil."""

import os
import time
from pathlib import Path
from threading import Lock

import psutil

from executord.ports import HostUsage


class HostMeter:
    """Cores in use are counted between two calls; the first one tells of the time since boot."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._lock = Lock()
        self._cpus = psutil.cpu_count() or 1
        self._before: tuple[float, float] | None = None

    def read(self) -> HostUsage:
        """Blocks for a moment. OSError when the disk does not answer."""
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._disk))
        with self._lock:
            cores = self._cores_used()
        return HostUsage(
            time=time.time(),
            cpus=self._cpus,
            cpu_cores_used=cores,
            load_1m=os.getloadavg()[0],
            memory_total_bytes=memory.total,
            memory_available_bytes=memory.available,
            disk_total_bytes=disk.total,
            disk_free_bytes=disk.free,
        )

    def _cores_used(self) -> float:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle_before, total_before = self._before or (0.0, 0.0)
        self._before = (idle, total)
        if total <= total_before:
            return 0.0
        share = 1.0 - (idle - idle_before) / (total - total_before)
        return min(1.0, max(0.0, share)) * self._cpus

"""A daemon with nothing to do: what memory it holds, and what processor time it takes."""

import time

import psutil

from tests.bench.table import Row
from tests.harness.daemon import running_daemon

_SETTLE_SECONDS = 3.0
_MIB = 1 << 20
_AIM_MIB = 80


def run(*, quick: bool) -> list[Row]:
    watch_seconds = 2.0 if quick else 10.0
    with running_daemon() as daemon:
        assert daemon.process is not None
        process = psutil.Process(daemon.process.pid)
        time.sleep(0.5 if quick else _SETTLE_SECONDS)
        before = _cpu_seconds(process)
        time.sleep(watch_seconds)
        percent = 100 * (_cpu_seconds(process) - before) / watch_seconds
        resident = process.memory_info().rss / _MIB
    return [
        Row(
            name="idle daemon, resident memory",
            figure=resident,
            unit="MiB",
            aim=f"< {_AIM_MIB} MiB",
            met=resident < _AIM_MIB,
        ),
        Row(
            name=f"idle daemon, processor over {watch_seconds:.0f} s",
            figure=percent,
            unit="% of a core",
        ),
    ]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system

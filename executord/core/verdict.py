"""From evidence to a verdict: was it fine, and if not, whose side and why?"""

import signal
from dataclasses import asdict

from executord.core.reasons import Fault, Reason
from executord.core.run import Evidence

_SIGNAL_BASE = 128
_KILLED = _SIGNAL_BASE + signal.SIGKILL


def judge(evidence: Evidence, *, time_limit_reached: bool) -> Fault | None:
    """None when the command ended with 0 and nothing speaks against believing it."""
    for reason, detail in _findings(evidence, time_limit_reached=time_limit_reached):
        return Fault(reason, detail, {k: v for k, v in asdict(evidence).items() if v is not None})
    return None


def _findings(seen: Evidence, *, time_limit_reached: bool) -> list[tuple[Reason, str]]:
    code = seen.exit_code
    found: list[tuple[Reason, str]] = []
    if seen.container_missing:
        found.append((Reason.CONTAINER_LOST, "The container vanished while it was being watched."))
    if seen.start_fault is not None:
        found.append((seen.start_fault, seen.start_error))
    if seen.host_restarted:
        found.append((Reason.ENGINE_RESTARTED, "The host restarted while the command ran."))
    if seen.engine_restarted and code in (None, 0, 255, _KILLED) and not seen.killed_by_us:
        found.append((Reason.ENGINE_RESTARTED, "The engine restarted while the command ran."))
    if time_limit_reached:
        found.append((Reason.RUN_SECONDS_EXCEEDED, "`limits.run_seconds` was used up."))
    if code == _KILLED and _memory_limit_hit(seen):
        found.append(
            (
                Reason.OUT_OF_MEMORY,
                f"The kernel killed the command at its limit of {seen.memory_limit_bytes} bytes.",
            )
        )
    if code is None:
        found.append((Reason.CONTAINER_LOST, "Nobody can say how the command ended."))
    elif _SIGNAL_BASE < code <= _SIGNAL_BASE + signal.NSIG:
        found.append((Reason.KILLED_BY_SIGNAL, f"Ended by {_signal_name(code)}."))
    elif code != 0:
        found.append((Reason.EXIT_CODE, f"Exit code {code}."))
    return found


def _memory_limit_hit(seen: Evidence) -> bool:
    """The kernel's count can be older than the end, and the engine's flag can be missing."""
    return bool(seen.oom_kills) or seen.oom_killed


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(code - _SIGNAL_BASE).name
    except ValueError:
        return f"signal {code - _SIGNAL_BASE}"

"""From what was seen of an end to whose fault it was."""

from typing import Any

import pytest

from executord.core.reasons import Reason, Side
from executord.core.run import Evidence
from executord.core.verdict import judge

CASES: list[tuple[str, dict[str, Any], Reason | None]] = [
    ("exit 0", {"exit_code": 0}, None),
    ("exit 1", {"exit_code": 1}, Reason.EXIT_CODE),
    (
        "exit 3 while a child was killed for memory",
        {"exit_code": 3, "oom_kills": 1},
        Reason.EXIT_CODE,
    ),
    ("exit 0 although a child was killed for memory", {"exit_code": 0, "oom_kills": 1}, None),
    ("137 with a kill for memory", {"exit_code": 137, "oom_kills": 1}, Reason.OUT_OF_MEMORY),
    (
        "137 with the engine's flag where the kernel does not tell",
        {"exit_code": 137, "oom_killed": True, "oom_kills": None},
        Reason.OUT_OF_MEMORY,
    ),
    (
        "137 with the engine's flag and a count that was read before the end",
        {"exit_code": 137, "oom_killed": True, "oom_kills": 0},
        Reason.OUT_OF_MEMORY,
    ),
    ("137 by a stranger", {"exit_code": 137, "oom_kills": 0}, Reason.KILLED_BY_SIGNAL),
    ("139", {"exit_code": 139}, Reason.KILLED_BY_SIGNAL),
    ("255 is an exit code like others", {"exit_code": 255}, Reason.EXIT_CODE),
    (
        "255 after the engine restarted",
        {"exit_code": 255, "engine_restarted": True},
        Reason.ENGINE_RESTARTED,
    ),
    (
        "137 after the engine restarted",
        {"exit_code": 137, "engine_restarted": True},
        Reason.ENGINE_RESTARTED,
    ),
    (
        "exit 1 while the engine restarted",
        {"exit_code": 1, "engine_restarted": True},
        Reason.EXIT_CODE,
    ),
    ("exit 0 across a reboot", {"exit_code": 0, "host_restarted": True}, Reason.ENGINE_RESTARTED),
    ("a vanished container", {"container_missing": True}, Reason.CONTAINER_LOST),
    ("an unknown code", {"exit_code": None}, Reason.CONTAINER_LOST),
    (
        "a command that is not there",
        {"exit_code": 127, "start_fault": Reason.COMMAND_NOT_FOUND},
        Reason.COMMAND_NOT_FOUND,
    ),
    ("a shell's 127", {"exit_code": 127}, Reason.EXIT_CODE),
]


@pytest.mark.parametrize(("name", "seen", "reason"), CASES, ids=[case[0] for case in CASES])
def test_an_end_is_explained_by_what_was_seen(
    name: str, seen: dict[str, Any], reason: Reason | None
) -> None:
    fault = judge(Evidence(**seen), time_limit_reached=False)
    assert (fault.reason if fault else None) is reason, name


def test_a_used_up_time_limit_explains_the_kill_it_led_to() -> None:
    fault = judge(Evidence(exit_code=137, killed_by_us=True), time_limit_reached=True)
    assert fault is not None
    assert fault.reason is Reason.RUN_SECONDS_EXCEEDED


def test_a_memory_kill_names_the_limit() -> None:
    evidence = Evidence(exit_code=137, oom_kills=1, memory_limit_bytes=1048576)
    fault = judge(evidence, time_limit_reached=False)
    assert fault is not None
    assert fault.side is Side.USER
    assert "1048576" in fault.detail
    assert fault.evidence["oom_kills"] == 1

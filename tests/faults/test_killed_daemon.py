"""kill -9 at random times while runs execute: none lost, none twice, numbers without gap.

What each run's own code leaves behind on the host tells how often it was executed; a real HTTP
receiver tells what was reported. `EXECUTORD_KILLS` sets how often the daemon is killed.
"""

import os
import random
import time
from pathlib import Path

from tests.fakes.receiver import Receiver
from tests.harness.daemon import Daemon

KILLS = int(os.environ.get("EXECUTORD_KILLS", "20"))


def test_no_run_is_lost_or_executed_twice_however_often_the_daemon_is_killed() -> None:
    dice = random.Random(2041)
    with Receiver() as receiver:
        daemon = Daemon(extra=f'[upstream]\nkind = "http"\nurl = "{receiver.url}"\n')
        try:
            daemon.start()
            marks = daemon.root / "data"
            marks.chmod(0o777)
            expected: dict[str, str] = {}
            for number in range(KILLS):
                expected |= submit_some(daemon, number, marks)
                time.sleep(dice.uniform(0.0, 0.9))
                daemon.kill()
                daemon.start()
            for run_id, state in expected.items():
                run = daemon.wait(run_id, within_seconds=120)
                assert run["state"] == state, (run_id, run["explanation"], run["timeline"])
                mark = marks / run_id
                executed = mark.read_text().count("x") if mark.exists() else 0
                assert executed == 1, f"{run_id} was executed {executed} times"
            check_numbers(daemon, receiver)
        finally:
            daemon.close()


def submit_some(daemon: Daemon, number: int, marks: Path) -> dict[str, str]:
    """Two runs a round, one that ends well and one that does not; ids to their expected ends."""
    expected = {}
    for kind, code, state in (("good", 0, "Succeeded"), ("bad", 7, "Failed")):
        run_id = f"{kind}-{number}"
        daemon.sh(
            f"echo x >> /marks/{run_id}; sleep 0.{3 + number % 6}; exit {code}",
            id=run_id,
            mounts=[{"source": str(marks), "target": "/marks", "read_only": False}],
        )
        expected[run_id] = state
    return expected


def check_numbers(daemon: Daemon, receiver: Receiver) -> None:
    told = [event["data"] for event in daemon.events()]
    assert [data["seq"] for data in told] == list(range(1, len(told) + 1))
    deadline = time.monotonic() + 60
    while receiver.last_seq() < len(told):
        assert time.monotonic() < deadline, "the receiver was not told everything"
        time.sleep(0.1)
    receiver.check()
    assert receiver.distinct_seqs() == [data["seq"] for data in told]

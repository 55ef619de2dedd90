"""Durable accepts a second with 64 clients, beside the disk's own floor: append and fdatasync.

The runs have a tier whose one slot is taken, so that what is measured is acceptance alone.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

from tests.bench.table import Row
from tests.harness.daemon import Daemon, UnixConnection, engine, running_daemon

CLIENTS = 64
PROCESSES = 2
TIER = '[tiers.one]\ncpus = 0.1\nmemory = "32MiB"\nmax_runs = 1\n'


def run(*, quick: bool) -> list[Row]:
    each = 10 if quick else 100
    with running_daemon(extra=TIER) as daemon:
        daemon.sh("sleep 600", tier="one", id="holder")
        seconds = submit_all(daemon, each)
        floor = fdatasyncs_per_second(daemon.root / "floor")
        daemon.kill()  # thousands of runs wait, and shall not execute
        remove_leftovers("holder")
    took = sorted(duration for _, duration in seconds)
    wall = max(began + duration for began, duration in seconds) - min(b for b, _ in seconds)
    rate = len(seconds) / wall
    p99 = took[int(len(took) * 0.99) - 1] * 1000
    return [
        Row(
            name=f"durable accepts, {CLIENTS} clients",
            figure=rate,
            unit="/s",
            peer="append + fdatasync, one at a time",
            peer_figure=floor,
            ratio=rate / floor,
            aim="≥ 2,000/s",
            met=rate >= 2000,
        ),
        Row(name="accept, p99", figure=p99, unit="ms", aim="≤ 50 ms", met=p99 <= 50),
    ]


def remove_leftovers(run_id: str) -> None:
    filters = quote(json.dumps({"label": [f"executord.run={run_id}"]}))
    for container in engine().get(f"/containers/json?all=1&filters={filters}"):
        engine().delete(f"/containers/{container['Id']}?force=1")
    for volume in engine().get(f"/volumes?filters={filters}")["Volumes"] or []:
        engine().delete(f"/volumes/{volume['Name']}")


def submit_all(daemon: Daemon, each: int) -> list[tuple[float, float]]:
    """(began, duration) of every request; the clients are processes of their own."""
    words = [sys.executable, "-m", "tests.bench.accepts", str(daemon.socket), str(each)]
    running = [
        subprocess.Popen([*words, str(number)], stdout=subprocess.PIPE)
        for number in range(PROCESSES)
    ]
    found: list[tuple[float, float]] = []
    for process in running:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        found += [tuple(pair) for pair in json.loads(output)]
    return found


def client(socket: Path, each: int, process: int) -> list[tuple[float, float]]:
    """Keeps its share of the clients busy: each has one request under way at any time."""
    lanes = [UnixConnection(socket, 60) for _ in range(CLIENTS // PROCESSES)]
    found: list[tuple[float, float]] = []
    for turn in range(each):
        begun = []
        for lane, connection in enumerate(lanes):
            body = json.dumps(
                {"id": f"b-{process}-{lane}-{turn}", "command": ["true"], "tier": "one"}
            )
            begun.append(time.time())
            connection.request("POST", "/v1/runs", body, {"Content-Type": "application/json"})
        for began, connection in zip(begun, lanes, strict=True):
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 201, answer.status
            found.append((began, time.time() - began))
    return found


def fdatasyncs_per_second(path: Path) -> float:
    times = []
    with path.open("ab") as file:
        for _ in range(200):
            began = time.perf_counter()
            file.write(b"x" * 512)
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return 1 / statistics.median(times)


if __name__ == "__main__":
    print(json.dumps(client(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

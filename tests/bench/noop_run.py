"""A run that does nothing, through the daemon, beside the same engine calls made bare.

Bare is what has to be paid in any case: an overlay volume, create, start, wait, inspect. The
daemon's time is from sending the assignment until its end is told on the event stream; so that it
pays for everything, the next run waits until the last one's container is gone.
"""

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.bench.table import Row
from tests.harness.daemon import IMAGE, TERMINAL, Daemon, UnixConnection, engine, running_daemon

COMMAND = ["/bin/true"]


def run(*, quick: bool) -> list[Row]:
    rounds = 5 if quick else 40
    ours, bare = [], []
    with running_daemon() as daemon:
        once_through_daemon(daemon)
        once_bare(daemon.root / "warm")
        for number in range(rounds):
            bare.append(once_bare(daemon.root / f"bare{number}"))
            ours.append(once_through_daemon(daemon))
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, bare, strict=True))
    return [
        Row(
            name="a run that does nothing",
            figure=statistics.median(ours) * 1000,
            unit="ms",
            peer="bare engine calls",
            peer_figure=statistics.median(bare) * 1000,
            ratio=ratio,
            aim="≤ 1.10",
            met=ratio <= 1.10,
        )
    ]


def once_through_daemon(daemon: Daemon) -> float:
    after = daemon.events()[-1]["data"]["seq"] if daemon.events() else 0
    with closing(UnixConnection(daemon.socket, 30)) as stream:
        stream.request("GET", f"/v1/events?after={after}&follow=true")
        events = told(stream.getresponse())
        began = time.perf_counter()
        run_id = daemon.submit(*COMMAND)
        for event in events:
            if event["run_id"] == run_id and event["to"] in TERMINAL:
                taken = time.perf_counter() - began
                assert event["to"] == "Succeeded"
                break
    until_gone(f"executord.run={run_id}")
    return taken


def told(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.strip():
            yield json.loads(line).get("data", {})


def until_gone(label: str) -> None:
    filters = json.dumps({"label": [label]})
    path = f"/containers/json?all=1&filters={filters}".replace(" ", "").replace('"', "%22")
    while engine().get(path):
        time.sleep(0.02)
    time.sleep(0.05)


def once_bare(root: Path) -> float:
    for name in ("lower", "upper", "work"):
        (root / name).mkdir(parents=True)
    (root / "upper").chmod(0o777)
    docker = engine()
    name = f"bench-{time.time_ns()}"
    began = time.perf_counter()
    docker.post("/volumes/create", overlay_volume(name, root))
    made = json.loads(docker.post(f"/containers/create?name={name}", container(name)))
    docker.post(f"/containers/{made['Id']}/start")
    docker.post(f"/containers/{made['Id']}/wait")
    ended = docker.get(f"/containers/{made['Id']}/json")
    taken = time.perf_counter() - began
    assert ended["State"]["ExitCode"] == 0
    docker.delete(f"/containers/{made['Id']}?force=1")
    docker.delete(f"/volumes/{name}")
    return taken


def overlay_volume(name: str, root: Path) -> dict[str, object]:
    layers = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work,userxattr,volatile"
    options = {"type": "overlay", "device": "overlay", "o": layers}
    return {"Name": name, "Driver": "local", "DriverOpts": options}


def container(volume: str) -> dict[str, object]:
    """The limits and defaults that a run of the daemon's tier gets."""
    memory = 64 << 20
    return {
        "Image": IMAGE,
        "Cmd": COMMAND,
        "WorkingDir": "/mnt",
        "User": "1000:1000",
        "HostConfig": {
            "Init": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": 100_000_000,
            "PidsLimit": 4096,
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": volume,
                    "Target": "/mnt",
                    "VolumeOptions": {"NoCopy": True},
                }
            ],
        },
    }

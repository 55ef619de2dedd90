"""The daemon in surroundings that fail: a full disk, a store that is not there, no permission."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.daemon import Daemon, running_daemon


@contextmanager
def daemon_on_a_small_disk(size: str) -> Iterator[Daemon]:
    daemon = Daemon()
    state = daemon.root / "state"
    state.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "small", str(state)], check=True
    )
    try:
        yield daemon.start()
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop_all()
            daemon.terminate()
        subprocess.run(["umount", "--lazy", str(state)], check=True)
        daemon.close()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


def test_a_full_state_disk_refuses_new_runs_loses_none_and_mends_itself() -> None:
    with daemon_on_a_small_disk("48m") as daemon:
        running = daemon.sh("echo before; sleep 1.5; exit 6")
        daemon.wait_for(running, "Running")
        fill(daemon.root / "state" / "filler")
        refused = daemon.post("/v1/runs", {"command": ["true"]})
        assert (refused.status, refused.json["code"]) == (507, "disk_full")
        assert daemon.get("/v1/node").status == 200
        ended = daemon.wait(running)
        assert (ended["state"], ended["exit_code"]) == ("Failed", 6)
        (daemon.root / "state" / "filler").unlink()
        assert daemon.wait(until_accepted(daemon))["state"] == "Succeeded"
        numbers = [event["data"]["seq"] for event in daemon.events()]
        assert numbers == list(range(1, len(numbers) + 1))


def until_accepted(daemon: Daemon) -> str:
    deadline = time.monotonic() + 20
    while True:
        reply = daemon.post("/v1/runs", {"command": ["true"]})
        if reply.status == 201:
            return str(reply.json["id"])
        assert time.monotonic() < deadline, reply.body
        time.sleep(0.2)


def test_a_store_that_is_not_there_is_an_error_that_names_it() -> None:
    with running_daemon(extra="[files]\nstore_patience_seconds = 1") as daemon:
        (daemon.root / "store").rmdir()
        run = daemon.wait(daemon.sh("true", files={"revision": "sha256:" + "1" * 64}))
        assert (run["state"], run["reason"]) == ("Error", "store_unavailable")
        assert run["explanation"]["side"] == "platform"
        assert str(daemon.root / "store") in json.dumps(run["explanation"])


def test_results_that_the_store_cannot_take_stay_on_the_node() -> None:
    with running_daemon(extra="[files]\nstore_patience_seconds = 1") as daemon:
        (daemon.root / "store").rmdir()
        run_id = daemon.sh("echo precious > result.txt")
        run = daemon.wait(run_id)
        assert (run["state"], run["reason"]) == ("Error", "store_unavailable")
        time.sleep(0.5)
        kept = list((daemon.root / "state").rglob("result.txt"))
        assert [path.read_text() for path in kept] == ["precious\n"]
        changes = daemon.get(f"/v1/runs/{run_id}/files").json
        assert "result.txt" in json.dumps(changes)


AS_NOBODY = """
import os, sys
from executord.cli import client, output, unreachable
from executord.cli.commands import ps
from executord.cli.main import main
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.argv = ["executorctl", "--socket", sys.argv[1], "ps"]
main()
"""


def test_a_user_without_permission_is_told_what_would_help() -> None:
    with running_daemon() as daemon:
        daemon.socket.parent.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(daemon.socket)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 3
        assert "You may not use the daemon's socket" in done.stderr
        assert "api.socket_group" in done.stderr


def test_a_way_of_making_directories_that_cannot_work_is_said_at_the_start() -> None:
    """Memory shares no blocks between files."""
    daemon = Daemon(extra='[files]\nmode = "reflink"')
    state = daemon.root / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "small", str(state)], check=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "executord", "serve", "--config", str(daemon.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 78, done.stderr
        assert '`files.mode` is "reflink", but blocks cannot be shared' in done.stderr
        assert '"auto"' in done.stderr
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)
        daemon.close()


def test_an_engine_that_is_not_there_is_said_at_the_start() -> None:
    daemon = Daemon()
    try:
        text = daemon.config.read_text()
        line = next(each for each in text.splitlines() if each.startswith('url = "unix'))
        daemon.config.write_text(text.replace(line, 'url = "unix:///nowhere/docker.sock"'))
        done = subprocess.run(
            [sys.executable, "-m", "executord", "serve", "--config", str(daemon.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 69
        assert "/nowhere/docker.sock" in done.stderr
        assert "engine.url" in done.stderr
    finally:
        daemon.close()

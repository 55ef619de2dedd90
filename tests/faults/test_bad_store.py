"""A real daemon whose store gives wrong bytes, too few of them, is slow, or is gone; and one whose
own cache is spoilt while it is down.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executord.files.client.push import Pushed, push_directory
from executord.files.store.store import Store
from tests.fakes.files import write_files
from tests.fakes.s3 import new_bucket, options, s3_server
from tests.harness.daemon import Daemon

CONTENT = "the right content of this file, and none other\n" * 40
PRINT = "sha256sum < data.txt; cat b/small"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon(extra="[files]\nmin_free = '1MiB'\nstore_patience_seconds = 2.0\n")
    try:
        yield made
    finally:
        made.close()


def push(daemon: Daemon, url: str = "", settings: dict[str, str] | None = None) -> Pushed:
    project = write_files(
        daemon.root / "project", {"data.txt": CONTENT, "b/small": "small", "big": b"b" * 3_000_000}
    )
    store = Store.open(url or f"file://{daemon.root}/store", settings or {})
    return push_directory(
        store, project, "alice/churn", author="alice", cache_home=daemon.root / "hashes"
    )


def run(daemon: Daemon, pushed: Pushed) -> tuple[str, str, str]:
    """State, reason and console of a run that shows its files."""
    run_id = daemon.sh(PRINT, files={"revision": pushed.revision})
    ended = daemon.wait(run_id, within_seconds=90)
    return ended["state"], ended["reason"], daemon.console(run_id)


def expected(daemon: Daemon) -> str:
    done = subprocess.run(
        ["sh", "-c", PRINT], cwd=daemon.root / "project", capture_output=True, text=True, check=True
    )
    return done.stdout


def holders_of(root: Path, content: bytes) -> list[Path]:
    """Files of the store that have it inside: blobs, or packs."""
    found = [path for path in root.rglob("*") if path.is_file() and content in path.read_bytes()]
    assert found
    return found


@pytest.mark.parametrize("damage", ["wrong digest", "short body"])
def test_a_store_with_bad_bytes_ends_the_run_as_corrupt_and_good_ones_mend_it(
    daemon: Daemon, damage: str
) -> None:
    daemon.start()
    pushed = push(daemon)
    before = {}
    for path in holders_of(daemon.root / "store", CONTENT.encode()):
        before[path] = data = path.read_bytes()
        at = data.index(CONTENT.encode()) + 100
        path.write_bytes(data[:at] + (b"X" + data[at + 1 :] if damage == "wrong digest" else b""))
    state, reason, _ = run(daemon, pushed)
    assert (state, reason) == ("Error", "files_corrupt"), daemon.tail()
    for path, data in before.items():
        path.write_bytes(data)
    assert run(daemon, pushed) == ("Succeeded", "completed", expected(daemon))


def test_a_store_that_is_gone_ends_the_run_as_such_and_the_next_one_works_when_it_is_back(
    daemon: Daemon,
) -> None:
    daemon.start()
    pushed = push(daemon)
    (daemon.root / "store").rename(daemon.root / "away")
    reply = daemon.post(
        "/v1/runs",
        {"command": ["/bin/sh", "-c", PRINT], "files": {"revision": pushed.revision}},
    )
    if reply.status == 201:
        ended = daemon.wait(reply.json["id"], within_seconds=90)
        assert (ended["state"], ended["reason"]) == ("Error", "store_unavailable")
    else:
        assert reply.status == 503, reply.body
    (daemon.root / "away").rename(daemon.root / "store")
    assert run(daemon, pushed) == ("Succeeded", "completed", expected(daemon))


@contextlib.contextmanager
def slow_line(endpoint: str, *, bytes_per_second: int) -> Iterator[str]:
    """A proxy through which answers trickle; gives its URL."""
    host, port = endpoint.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket, rate: int) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(8192):
                if rate:
                    time.sleep(len(piece) / rate)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, int(port)))
                for ends in ((client, server, 0), (server, client, bytes_per_second)):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield "http://{}:{}".format(*listener.getsockname())
    finally:
        listener.close()


def test_a_slow_store_is_waited_for_shown_and_can_be_stopped(daemon: Daemon) -> None:
    with s3_server() as endpoint, slow_line(endpoint, bytes_per_second=400_000) as slow:
        url = f"s3://{new_bucket(endpoint)}/store"
        text = daemon.config.read_text()
        settings = ", ".join(f"{key} = {json.dumps(v)}" for key, v in options(slow).items())
        daemon.config.write_text(
            text.replace(
                f'url = "file://{daemon.root}/store"', f'url = "{url}"\noptions = {{ {settings} }}'
            )
        )
        daemon.start()
        pushed = push(daemon, url, options(endpoint))
        slow_run = daemon.sh(PRINT, files={"revision": pushed.revision})
        stopped_run = daemon.sh(PRINT, files={"revision": pushed.revision})
        daemon.wait_for(stopped_run, "Preparing")
        daemon.post(f"/v1/runs/{stopped_run}/stop", {})
        assert daemon.wait(stopped_run)["state"] == "Stopped"
        assert daemon.wait(slow_run, within_seconds=90)["state"] == "Succeeded", daemon.tail()
        assert daemon.console(slow_run) == expected(daemon)


# -- the node's own disk ---------------------------------------------------------------------------


def flip_everywhere(state: Path, content: bytes) -> int:
    flipped = 0
    for path in state.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size == len(content):
            data = path.read_bytes()
            if data == content:
                fd = os.open(path, os.O_RDWR)
                os.pwrite(fd, bytes([data[7] ^ 16]), 7)
                os.close(fd)
                flipped += 1
    return flipped


def test_a_cache_that_is_spoilt_while_the_daemon_is_down_gives_no_run_a_wrong_byte(
    daemon: Daemon,
) -> None:
    daemon.start()
    pushed = push(daemon)
    assert run(daemon, pushed)[0] == "Succeeded"
    daemon.kill()
    assert flip_everywhere(daemon.root / "state", CONTENT.encode())
    daemon.start()
    assert run(daemon, pushed) == ("Succeeded", "completed", expected(daemon))
    files = daemon.get("/v1/cache").json["files"]
    assert files["damaged"] >= 1
    assert files["mended"] >= 1
    assert files["quarantine_bytes"] >= len(CONTENT)
    assert "blob.quarantined" in daemon.log.read_text()


def ctl(daemon: Daemon, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "executord.cli", "--socket", str(daemon.socket), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_verify_finds_names_and_mends_while_the_daemon_runs(daemon: Daemon) -> None:
    daemon.start()
    pushed = push(daemon)
    assert run(daemon, pushed)[0] == "Succeeded"
    good = ctl(daemon, "cache", "verify")
    assert (good.returncode, "All of it is right" in good.stdout) == (0, True), good
    assert flip_everywhere(daemon.root / "state", CONTENT.encode())
    bad = ctl(daemon, "cache", "verify", "--json")
    assert bad.returncode == 1
    report = json.loads(bad.stdout)
    assert (report["good"], report["damaged"], report["mended"]) == (False, 1, 0)
    assert "data.txt" in report["objects"][0]["what"]
    mended = ctl(daemon, "cache", "verify", "--repair")
    assert (mended.returncode, "1 bad, 1 mended" in mended.stdout) == (0, True), mended
    assert run(daemon, pushed) == ("Succeeded", "completed", expected(daemon))
    reply = daemon.post("/v1/cache/verify", {})
    assert (reply.status, reply.json["good"]) == (200, True)

"""Syncing from outside: a real daemon and engine, a run that goes on, and ends that could not."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executord.files.client.pull import pull_revision
from executord.files.store.store import Store
from tests.harness.daemon import Daemon, engine, running_daemon

PATIENCE = "\n[files]\nstore_patience_seconds = 1\n"
COUNTS = (
    "n=0; while [ ! -e stop ]; do n=$((n+1)); echo $n > one; echo $n > two; "
    "if [ $n = 5 ]; then touch begun; fi; done"
)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running_daemon(extra=PATIENCE) as running:
        yield running


def executorctl(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "executord.cli", "--socket", str(daemon.socket), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def synced(daemon: Daemon, run_id: str, *words: str) -> dict[str, Any]:
    done = executorctl(daemon, "--json", "sync", *words, run_id)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def until(what: str, holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def begun(daemon: Daemon, run_id: str) -> None:
    upper = daemon.root / "state/runs" / run_id / "upper"
    until("it writes", (upper / "begun").exists)


def container(run_id: str) -> dict[str, Any]:
    found = [c for c in containers() if c["Labels"].get("executord.run") == run_id]
    return found[0]


def containers() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = engine().get("/containers/json?all=1")
    return listed


def pulled(daemon: Daemon, revision: str, target: Path) -> dict[str, str]:
    store = Store.open(f"file://{daemon.root}/store", {})
    pull_revision(store, revision, target)
    return {path.name: path.read_text() for path in target.iterdir()}


def test_a_sync_of_a_run_that_writes_all_the_time_is_consistent_and_the_run_goes_on(
    daemon: Daemon, tmp_path: Path
) -> None:
    run_id = daemon.sh(COUNTS, project="a/counts")
    begun(daemon, run_id)
    revisions = []
    for n in range(5):
        answer = synced(daemon, run_id)
        assert answer["mid_run"]
        assert 0 < answer["paused_seconds"] < 10
        revision = answer["result"]["revision"]
        files = pulled(daemon, revision, tmp_path / str(n))
        one, two = int(files["one"] or -1), int(files["two"] or -1)
        assert one == -1 or two == -1 or one - two in (0, 1)  # one was written first, or emptied
        revisions.append(revision)
    assert container(run_id)["State"] == "running"
    shown = executorctl(daemon, "show", run_id).stdout
    assert "Stored while it ran" in shown
    assert daemon.get(f"/v1/runs/{run_id}").json["sync_count"] == 5
    daemon.post(f"/v1/runs/{run_id}/stop", {"grace_seconds": 0})
    run = daemon.wait(run_id)
    assert run["result"]["head"] == "moved"
    store = Store.open(f"file://{daemon.root}/store", {})
    line = [run["result"]["revision"]]
    while line[-1]:
        line.append(store.revision(line[-1]).parent)
    assert [revision for revision in line if revision in revisions] == revisions[::-1]


def test_a_run_left_standing_still_by_a_killed_daemon_is_resumed(daemon: Daemon) -> None:
    run_id = daemon.sh(COUNTS)
    begun(daemon, run_id)
    daemon.kill()
    engine().post(f"/containers/{container(run_id)['Id']}/pause")
    assert container(run_id)["State"] == "paused"
    daemon.start()
    until("it goes on", lambda: container(run_id)["State"] == "running")
    daemon.post(f"/v1/runs/{run_id}/stop", {"grace_seconds": 0})
    assert daemon.wait(run_id)["state"] == "Stopped"


def test_what_an_end_could_not_store_is_kept_shown_and_stored_later(
    daemon: Daemon, tmp_path: Path
) -> None:
    run_id = daemon.sh("echo made > made; sleep 1", project="a/kept")
    until("it runs", lambda: daemon.get(f"/v1/runs/{run_id}").json["state"] == "Running")
    (daemon.root / "store").rename(daemon.root / "away")
    run = daemon.wait(run_id)
    assert (run["state"], run["reason"]) == ("Error", "store_unavailable")
    assert f"executorctl sync {run_id}" in run["explanation"]["advice"]
    until("it is clean", lambda: not [c for c in containers() if run_id in c["Names"][0]])
    again = executorctl(daemon, "sync", run_id)
    assert again.returncode == 1
    (daemon.root / "away").rename(daemon.root / "store")
    listed = executorctl(daemon, "files", run_id)
    assert "made" in listed.stdout
    assert "on the node alone" in listed.stdout + listed.stderr
    answer = synced(daemon, run_id)
    assert not answer["mid_run"]
    assert pulled(daemon, answer["result"]["revision"], tmp_path / "out") == {"made": "made\n"}
    after = daemon.get(f"/v1/runs/{run_id}").json
    assert (after["state"], after["keeps_workspace"]) == ("Error", False)
    assert after["result"] == answer["result"]
    assert not (daemon.root / "state/runs" / run_id).exists()
    assert daemon.post(f"/v1/runs/{run_id}/sync", {}).status == 409


def test_what_was_kept_is_given_up_only_by_word(daemon: Daemon) -> None:
    run_id = daemon.sh("echo made > made; sleep 1", project="a/lost")
    until("it runs", lambda: daemon.get(f"/v1/runs/{run_id}").json["state"] == "Running")
    (daemon.root / "store").rename(daemon.root / "away")
    assert daemon.wait(run_id)["state"] == "Error"
    daemon.kill()
    (daemon.root / "away").rename(daemon.root / "store")
    daemon.start()
    home = daemon.root / "state/runs" / run_id
    until("it is clean", lambda: daemon.post("/v1/cache/prune", {}).status == 200)
    assert (home / "upper/made").exists()
    until(
        "it may be asked", lambda: executorctl(daemon, "sync", "--discard", run_id).returncode == 0
    )
    assert not home.exists()

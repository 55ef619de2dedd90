"""Prefetches and prepare-ahead of a whole daemon, on the real engine."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.files import write_files
from tests.harness.daemon import Daemon, engine, running_daemon

FILES = {f"d{n // 50}/f{n}": f"{n}\n" for n in range(300)}
SLOTS = 8


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon() as running:
        yield running


def executorctl(daemon: Daemon, *words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "executord.cli", "--socket", str(daemon.socket), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def pushed(daemon: Daemon, directory: Path, project: str, mark: str) -> str:
    """Files that no other test has, so that nothing of them is here."""
    write_files(directory, {name: f"{mark} {text}" for name, text in FILES.items()})
    done = executorctl(daemon, "--json", "push", str(directory), "--project", project)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["revision"])


def until(what: Callable[[], Any], within_seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.03)
    raise AssertionError("it did not happen in time")


def cost_of(run: dict[str, Any], stage: str) -> dict[str, Any]:
    (found,) = [cost for cost in run["costs"] if cost["stage"] == stage]
    return dict(found)


def fill_the_slots(daemon: Daemon, seconds: int = 60) -> list[str]:
    return [daemon.sh(f"sleep {seconds}") for _ in range(SLOTS)]


def empty_them(daemon: Daemon, slots: list[str]) -> None:
    for slot in slots:
        daemon.post(f"/v1/runs/{slot}/stop", {"results": "discard", "grace_seconds": 0})


# -- prefetch --------------------------------------------------------------------------------------


def test_what_was_prefetched_costs_the_run_nothing_to_fetch(daemon: Daemon, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    revision = pushed(daemon, tmp_path / "p", "alice/one", "one")
    environment = {"image": "executord-test/busybox:1", "dockerfile": f"RUN echo {mark} > /one"}
    wanted = {"revisions": [revision], "images": [environment]}
    done = executorctl(daemon, "--json", "cache", "prefetch", "-", stdin=json.dumps(wanted))
    assert done.returncode == 0, done.stdout + done.stderr
    job = json.loads(done.stdout)
    assert job["state"] == "ready"
    assert [item["way"] for item in job["items"]][1] == "built"
    run_id = daemon.sh("cat d0/f7 /one", files={"revision": revision}, environment=environment)
    run = daemon.wait(run_id)
    engine().delete(f"/images/{run['image']['id']}?force=true")
    assert daemon.console(run_id) == f"one 7\n{mark}\n"
    assert "Building" not in [entry["to"] for entry in run["timeline"]]
    cost = cost_of(run, "prepare")
    assert (cost["way"], cost["files_fetched"]) == ("snapshot", 0)
    assert cost["files_from_cache"] == len(FILES)
    assert cost_of(run, "image")["way"] == "local"


def test_a_second_prefetch_of_the_same_is_answered_at_once(daemon: Daemon, tmp_path: Path) -> None:
    revision = pushed(daemon, tmp_path / "p", "alice/two", "two")
    wanted = {"revisions": [revision]}
    first = daemon.post("/v1/cache/prefetch", wanted)
    assert first.status == 202
    job = first.json["id"]
    until(lambda: [j for j in jobs(daemon) if j["id"] == job and j["state"] == "ready"])
    again = daemon.post("/v1/cache/prefetch", wanted)
    assert (again.status, again.json["state"]) == (200, "ready")
    entries = daemon.get("/v1/cache/trees").json["entries"]
    assert any(f"prefetch:{job}/0" in entry["pinned_by"] for entry in entries)


def jobs(daemon: Daemon) -> list[dict[str, Any]]:
    return list(daemon.get("/v1/cache").json["prefetches"])


def test_what_cannot_be_had_is_told_and_the_rest_is_ready(daemon: Daemon, tmp_path: Path) -> None:
    revision = pushed(daemon, tmp_path / "p", "alice/three", "three")
    wanted = {
        "revisions": [revision, "sha256:" + "0" * 64],
        "images": [{"image": "127.0.0.1:1/nobody/there:1"}],
    }
    done = executorctl(daemon, "--json", "cache", "prefetch", "-", stdin=json.dumps(wanted))
    assert done.returncode == 1
    items = json.loads(done.stdout)["items"]
    assert [item["state"] for item in items] == ["ready", "failed", "failed"]
    assert items[1]["reason"] == "revision_not_found"
    assert items[2]["detail"]


# -- prepare-ahead ---------------------------------------------------------------------------------


def test_the_next_queued_run_is_made_ready_while_others_run(daemon: Daemon, tmp_path: Path) -> None:
    revision = pushed(daemon, tmp_path / "p", "alice/four", "four")
    sets = pushed(daemon, tmp_path / "s", "alice/five", "five")
    slots = fill_the_slots(daemon)
    run_id = daemon.sh(
        "cat d0/f7 /sets/d0/f7",
        files={"revision": revision},
        mounts=[{"revision": sets, "target": "/sets"}],
    )
    queued = until(lambda: is_ready(daemon, run_id))
    assert queued["state"] == "Queued"
    assert [entry["to"] for entry in queued["timeline"]] == ["Queued"]
    empty_them(daemon, slots)
    run = daemon.wait(run_id)
    assert run["state"] == "Succeeded", run["explanation"]
    assert daemon.console(run_id) == "four 7\nfive 7\n"
    for stage in ("prepare", "datasets"):
        cost = cost_of(run, stage)
        assert (cost["way"], cost["files_fetched"]) == ("snapshot", 0)
    until(lambda: not held_ahead(daemon))


def is_ready(daemon: Daemon, run_id: str) -> dict[str, Any] | None:
    run: dict[str, Any] = daemon.run(run_id)
    return run if run["progress"].get("ahead", {}).get("detail") == "ready" else None


def held_ahead(daemon: Daemon) -> list[str]:
    entries = daemon.get("/v1/cache/trees").json["entries"]
    return [name for each in entries for name in each["pinned_by"] if name.startswith("ahead:")]


def test_a_queued_run_that_cannot_be_made_ready_fails_in_its_own_turn_only(
    daemon: Daemon,
) -> None:
    slots = fill_the_slots(daemon)
    run_id = daemon.sh("true", files={"revision": "sha256:" + "0" * 64})
    until(lambda: "not now" in daemon.run(run_id)["progress"].get("ahead", {}).get("detail", ""))
    assert daemon.run(run_id)["state"] == "Queued"
    empty_them(daemon, slots)
    run = daemon.wait(run_id)
    assert (run["state"], run["reason"]) == ("Error", "revision_not_found")


def test_a_queued_run_that_is_stopped_holds_nothing(daemon: Daemon, tmp_path: Path) -> None:
    revision = pushed(daemon, tmp_path / "p", "alice/six", "six")
    slots = fill_the_slots(daemon)
    run_id = daemon.sh("true", files={"revision": revision})
    until(lambda: is_ready(daemon, run_id))
    assert held_ahead(daemon) == [f"ahead:{run_id}"]
    daemon.post(f"/v1/runs/{run_id}/stop", {})
    assert daemon.wait(run_id)["state"] == "Stopped"
    until(lambda: not held_ahead(daemon))
    empty_them(daemon, slots)


def test_what_a_killed_daemon_had_made_ready_is_there_and_nothing_else_is_left(
    tmp_path: Path,
) -> None:
    with running_daemon() as daemon:
        revision = pushed(daemon, tmp_path / "p", "alice/seven", "seven")
        slots = fill_the_slots(daemon)
        run_id = daemon.sh("cat d0/f7", files={"revision": revision})
        until(lambda: is_ready(daemon, run_id))
        daemon.kill()
        daemon.start()
        until(lambda: is_ready(daemon, run_id))
        empty_them(daemon, slots)
        run = daemon.wait(run_id)
        assert run["state"] == "Succeeded"
        assert cost_of(run, "prepare")["files_fetched"] == 0


def test_a_node_may_be_told_to_make_nothing_ready_ahead(tmp_path: Path) -> None:
    with running_daemon() as daemon:
        text = daemon.config.read_text().replace("[runs]\n", "[runs]\nprepare_ahead = 0\n")
        daemon.config.write_text(text)
        daemon.terminate()
        daemon.start()
        revision = pushed(daemon, tmp_path / "p", "alice/eight", "eight")
        slots = fill_the_slots(daemon, 3)
        run_id = daemon.sh("true", files={"revision": revision})
        assert daemon.run(run_id)["progress"] == {}
        run = daemon.wait(run_id)
        assert cost_of(run, "prepare")["files_fetched"] == len(FILES)
        for slot in slots:
            daemon.wait(slot)

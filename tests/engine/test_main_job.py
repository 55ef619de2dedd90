"""The main job from outside: a real daemon, a real engine, its socket, and nothing else."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.harness.daemon import Daemon, engine, running_daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon() as running:
        yield running


def states(run: dict[str, object]) -> list[str]:
    timeline = run["timeline"]
    assert isinstance(timeline, list)
    return [entry["to"] for entry in timeline]


def executorctl(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "executord.cli", "--socket", str(daemon.socket), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def push(daemon: Daemon, directory: Path, project: str) -> str:
    done = executorctl(daemon, "--json", "push", str(directory), "--project", project)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["revision"])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.txt").write_text("a\n")
    (root / "src" / "b.txt").write_text("b\n")
    (root / "old" / "deep").mkdir(parents=True)
    (root / "old" / "deep" / "c.txt").write_text("c\n")
    (root / "keep.txt").write_text("kept\n")
    (root / ".dominoignore").write_text("*.tmp\n")
    return root


# -- unhappy ways ----------------------------------------------------------------------------------


def test_a_command_that_fails_is_the_users_side_with_its_exit_code(daemon: Daemon) -> None:
    run = daemon.wait(daemon.sh("echo out; echo err >&2; exit 3"))
    assert run["state"] == "Failed"
    assert run["explanation"]["side"] == "user"
    assert run["reason"] == "exit_code"
    assert run["exit_code"] == 3


def test_a_command_that_is_not_in_the_image_is_the_users_side(daemon: Daemon) -> None:
    run = daemon.wait(daemon.submit("/no/such/program"))
    assert (run["state"], run["reason"]) == ("Failed", "command_not_found")
    assert "/no/such/program" in run["explanation"]["detail"]


def test_a_dockerfile_that_does_not_build_is_the_users_side_and_its_output_is_kept(
    daemon: Daemon,
) -> None:
    environment = {"image": "executord-test/busybox:1", "dockerfile": "RUN echo step-one && exit 9"}
    run_id = daemon.sh("true", environment=environment)
    run = daemon.wait(run_id)
    assert (run["state"], run["reason"]) == ("Failed", "build_failed")
    assert "Building" in states(run)
    assert "step-one" in daemon.console(run_id, stream="build")


def test_an_image_that_must_not_be_pulled_and_is_not_here_is_the_users_side(
    daemon: Daemon,
) -> None:
    environment = {"image": "no-such-image:1", "pull": "never"}
    run = daemon.wait(daemon.sh("true", environment=environment))
    assert (run["state"], run["reason"]) == ("Failed", "image_not_found")


def test_a_missing_revision_is_not_blamed_on_the_code(daemon: Daemon) -> None:
    run = daemon.wait(daemon.sh("true", files={"revision": "sha256:" + "0" * 64}))
    assert (run["state"], run["reason"]) == ("Error", "revision_not_found")
    assert run["explanation"]["side"] == "platform"


def test_memory_beyond_the_tiers_limit_is_explained(daemon: Daemon) -> None:
    # the shell itself grows, so that it is the main process that the kernel kills
    run = daemon.wait(daemon.sh("x=0123456789abcdef; while true; do x=$x$x; done"))
    assert (run["state"], run["reason"]) == ("Failed", "out_of_memory")


def test_a_used_up_time_limit_ends_the_run(daemon: Daemon) -> None:
    run = daemon.wait(daemon.sh("sleep 60", limits={"run_seconds": 0.5}))
    assert (run["state"], run["reason"]) == ("Failed", "run_seconds_exceeded")


def test_a_run_that_ignores_the_stop_signal_is_killed_after_its_grace(daemon: Daemon) -> None:
    run_id = daemon.sh("trap '' TERM; echo ready; while true; do sleep 0.1; done")
    daemon.wait_for(run_id, "Running")
    assert daemon.post(f"/v1/runs/{run_id}/stop", {"grace_seconds": 1}).status == 202
    assert daemon.wait(run_id)["state"] == "Stopped"


def test_a_stopped_run_cannot_be_stopped_again(daemon: Daemon) -> None:
    run_id = daemon.sh("true")
    daemon.wait(run_id)
    reply = daemon.post(f"/v1/runs/{run_id}/stop", {})
    assert (reply.status, reply.json["code"]) == (409, "run_over")


def test_the_same_id_gives_the_same_run_and_other_content_is_refused(daemon: Daemon) -> None:
    assert daemon.post("/v1/runs", {"id": "same-1", "command": ["true"]}).status == 201
    assert daemon.post("/v1/runs", {"id": "same-1", "command": ["true"]}).status == 200
    clash = daemon.post("/v1/runs", {"id": "same-1", "command": ["false"]})
    assert (clash.status, clash.json["code"]) == (409, "id_conflict")
    daemon.wait("same-1")
    assert daemon.post("/v1/runs", {"id": "same-1", "command": ["true"]}).status == 200


def test_a_mount_outside_the_allowed_roots_is_refused(daemon: Daemon) -> None:
    mounts = [{"source": "/etc", "target": "/data"}]
    reply = daemon.post("/v1/runs", {"command": ["true"], "mounts": mounts})
    assert (reply.status, reply.json["code"]) == (422, "mount_not_allowed")
    assert reply.json["pointer"] == "/mounts/0/source"


def test_an_unknown_tier_is_refused_and_the_known_ones_are_named(daemon: Daemon) -> None:
    reply = daemon.post("/v1/runs", {"command": ["true"], "tier": "vast"})
    assert (reply.status, reply.json["code"]) == (422, "unknown_tier")
    assert "small" in reply.json["detail"]


# -- the main way ----------------------------------------------------------------------------------


def test_a_run_goes_through_its_life_and_leaves_nothing_behind(daemon: Daemon) -> None:
    run_id = daemon.sh("echo hello; echo oops >&2")
    run = daemon.wait(run_id)
    assert states(run) == [
        "Queued",
        "Scheduled",
        "Preparing",
        "Running",
        "Finishing",
        "Succeeded",
    ]
    assert daemon.console(run_id, stream="stdout") == "hello\n"
    assert daemon.console(run_id, stream="stderr") == "oops\n"
    assert run["usage"]["cpu_seconds"] > 0
    time.sleep(0.5)
    assert containers_of(daemon, run_id) == []


def containers_of(daemon: Daemon, run_id: str) -> list[str]:
    """What the engine itself says is there, whatever the daemon thinks."""
    filters = json.dumps({"label": [f"executord.run={run_id}"]})
    return [each["Id"] for each in engine().get(f"/containers/json?all=1&filters={quote(filters)}")]


def test_project_files_come_in_and_changes_go_back(
    daemon: Daemon, project: Path, tmp_path: Path
) -> None:
    base = push(daemon, project, "alice/files")
    script = (
        "set -e; cat src/a.txt; echo changed > src/a.txt; rm src/b.txt; mkdir results;"
        "echo new > results/r.txt; rm -r old; mkdir old; echo replaced > old/x.txt;"
        "echo ignored > junk.tmp; echo '{\"auc\": 0.9}' > dominostats.json; id -u"
    )
    run_id = daemon.sh(script, project="alice/files", files={"revision": base})
    run = daemon.wait(run_id)
    assert run["state"] == "Succeeded", daemon.console(run_id)
    assert daemon.console(run_id) == "a\n1000\n"
    result = run["result"]
    assert result["head"] == "moved"
    assert result["diagnostics"] == {"auc": 0.9}
    assert result["revision"] != base
    out = tmp_path / "out"
    done = executorctl(daemon, "pull", result["revision"], str(out))
    assert done.returncode == 0, done.stderr
    found = {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()}
    assert found == {
        "src/a.txt": "changed\n",
        "results/r.txt": "new\n",
        "old/x.txt": "replaced\n",
        "keep.txt": "kept\n",
        ".dominoignore": "*.tmp\n",
        "dominostats.json": '{"auc": 0.9}\n',
    }
    diff = executorctl(daemon, "diff", base, result["revision"])
    assert diff.returncode == 0, diff.stderr
    assert "src/b.txt" in diff.stdout


def test_a_second_run_of_the_same_project_takes_its_files_from_the_cache(
    daemon: Daemon, project: Path
) -> None:
    for number, path in enumerate(sorted(p for p in project.rglob("*") if p.is_file())):
        path.write_text(f"nobody else has this content: {number}")
    base = push(daemon, project, "alice/cache")
    costs = []
    for _ in range(2):
        run = daemon.wait(daemon.sh("true", project="alice/cache", files={"revision": base}))
        costs.append(next(cost for cost in run["costs"] if cost["stage"] == "prepare"))
    assert costs[0]["files_fetched"] == 5
    assert costs[1]["files_fetched"] == 0
    assert costs[1]["way"] == "snapshot"


def test_two_runs_from_one_base_keep_both_their_results(daemon: Daemon, project: Path) -> None:
    base = push(daemon, project, "alice/two")
    heads = []
    for word in ("one", "two"):
        run_id = daemon.sh(f"echo {word} > keep.txt", project="alice/two", files={"revision": base})
        heads.append(daemon.wait(run_id)["result"])
    assert [result["head"] for result in heads] == ["moved", "conflict"]
    assert heads[0]["revision"] != heads[1]["revision"]


def test_files_of_a_stopped_run_are_kept_unless_discarded(daemon: Daemon, project: Path) -> None:
    base = push(daemon, project, "alice/stop")
    for results, head in (("keep", "moved"), ("discard", None)):
        run_id = daemon.sh(
            "echo partial > part.txt; echo ready; sleep 60",
            project="alice/stop",
            files={"revision": base},
        )
        daemon.wait_for(run_id, "Running")
        until_console_says(daemon, run_id, "ready")
        daemon.post(f"/v1/runs/{run_id}/stop", {"results": results, "grace_seconds": 1})
        run = daemon.wait(run_id)
        assert run["state"] == "Stopped"
        assert (run["result"] or {}).get("head") == head


def until_console_says(daemon: Daemon, run_id: str, word: str) -> None:
    deadline = time.monotonic() + 15
    while word not in daemon.console(run_id):
        assert time.monotonic() < deadline, f"{word!r} never came: {daemon.console(run_id)!r}"
        time.sleep(0.05)


def test_an_environment_is_built_once_and_then_found(daemon: Daemon) -> None:
    mark = str(time.time_ns())
    environment = {
        "image": "executord-test/busybox:1",
        "dockerfile": f"RUN echo {mark} > /made\n",
    }
    first = daemon.wait(daemon.sh(f"grep {mark} /made", environment=environment))
    second = daemon.wait(daemon.sh(f"grep {mark} /made", environment=environment))
    assert first["state"] == second["state"] == "Succeeded"
    assert "Building" in states(first)
    assert "Building" not in states(second)


def test_a_run_waits_in_its_tier_until_a_slot_is_free_and_keeps_its_order() -> None:
    extra = '[tiers.one]\ncpus = 0.1\nmemory = "32MiB"\nmax_runs = 1\n'
    with running_daemon(extra=extra) as daemon:
        ids = [daemon.sh("sleep 0.3", tier="one", id=f"q-{n}") for n in range(3)]
        assert daemon.run(ids[2])["state"] == "Queued"
        ended = [daemon.wait(run_id)["ended_at"] for run_id in ids]
        assert ended == sorted(ended)


def test_the_container_is_locked_down_and_told_about_its_run(daemon: Daemon) -> None:
    run_id = daemon.sh(
        "id -u; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; pwd;"
        "echo $DOMINO_RUN_ID $EXECUTORD_PROJECT_NAME; cat /run/secrets/TOKEN;"
        "touch /run/secrets/x 2>/dev/null || echo read-only",
        project="alice/locked",
        id="locked-1",
        secrets={"TOKEN": "hush-hush-123"},
    )
    run = daemon.wait(run_id)
    assert run["state"] == "Succeeded"
    lines = daemon.console(run_id).splitlines()
    assert lines[0] == "1000"
    assert lines[1].split()[1] == "0" * 16
    assert lines[2].split()[1] == "1"
    assert lines[3:5] == ["/mnt", "locked-1 locked"]
    assert "hush-hush-123" not in daemon.console(run_id)
    assert lines[-1].endswith("read-only")
    kept = b"".join(p.read_bytes() for p in (daemon.root / "state").rglob("*") if p.is_file())
    assert b"hush-hush-123" not in kept
    assert b"hush-hush-123" not in daemon.log.read_bytes()


# -- the daemon itself -----------------------------------------------------------------------------


def test_a_daemon_that_leaves_lets_its_runs_go_on_and_the_next_one_adopts_them() -> None:
    with running_daemon() as daemon:
        run_id = daemon.sh("echo one; sleep 2; echo two; exit 4")
        daemon.wait_for(run_id, "Running")
        assert daemon.terminate() == 0
        daemon.start()
        run = daemon.wait(run_id)
        assert (run["state"], run["exit_code"]) == ("Failed", 4)
        assert daemon.console(run_id) == "one\ntwo\n"
        assert states(run).count("Running") == 1


def test_an_end_that_nobody_watched_is_found_with_its_code() -> None:
    with running_daemon() as daemon:
        run_id = daemon.sh("echo before; sleep 1; echo after; exit 5")
        daemon.wait_for(run_id, "Running")
        daemon.kill()
        time.sleep(2)
        daemon.start()
        run = daemon.wait(run_id)
        assert (run["state"], run["exit_code"]) == ("Failed", 5)
        assert daemon.console(run_id) == "before\nafter\n"


def test_a_second_daemon_on_the_same_state_refuses() -> None:
    with running_daemon() as daemon:
        second = subprocess.run(
            [sys.executable, "-m", "executord", "serve", "--config", str(daemon.config)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 75
        assert str(daemon.root / "state") in second.stderr


def test_a_full_queue_says_when_to_come_back() -> None:
    extra = '[tiers.one]\ncpus = 0.1\nmemory = "32MiB"\nmax_runs = 1\n'
    with running_daemon() as daemon:
        text = daemon.config.read_text().replace("max_queue = 100000", "max_queue = 2") + extra
        daemon.terminate()
        daemon.config.write_text(text)
        daemon.start()
        for _ in range(3):
            daemon.sh("sleep 30", tier="one")
        reply = daemon.post("/v1/runs", {"command": ["true"], "tier": "one"})
        assert (reply.status, reply.json["code"]) == (429, "queue_full")
        assert int(reply.headers["Retry-After"]) > 0

"""The commands as processes of their own, on a fake daemon."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.daemon import FakeDaemon, problem
from tests.fakes.daemon_runs import cost
from tests.fakes.executorctl import Live, ctl

NODE = {
    "name": "node-1",
    "version": "0.1.0",
    "accepting": True,
    "why_not": "",
    "queued": 2,
    "running": 1,
    "max_queue": 100,
    "cpus": 4.0,
    "memory_bytes": 8 << 30,
    "promised_cpus": 1.0,
    "promised_memory_bytes": 1 << 30,
    "store_url": "s3://team/store",
    "tiers": [
        {"name": "small", "cpus": 1.0, "memory_bytes": 1 << 30, "max_runs": 4, "promised_runs": 1}
    ],
    "engine": {"version": "20.10.24", "api_version": "1.41", "live_restore": False},
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as fake:
        yield fake


# -- exit codes and errors -------------------------------------------------------------------------


def test_an_unreachable_daemon_is_exit_code_3_and_a_sentence(tmp_path: Path) -> None:
    done = ctl("ps", socket=tmp_path / "none")
    assert done.returncode == 3
    assert f"There is no socket at {tmp_path / 'none'}" in done.stderr.decode()
    assert "--socket" in done.stderr.decode()


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("ps", "--nonsense"), ("show",), ("run",), ("ps", "--state", "Sleeping")],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert ctl(*arguments, socket=tmp_path / "none").returncode == 2


def test_a_refusal_is_exit_code_1_and_says_the_next_step(daemon: FakeDaemon) -> None:
    done = ctl("show", "nope", socket=daemon.path)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "executorctl: There is no run nope.\n  `executorctl ps -a` lists the runs of this node.\n"
    )


def test_machines_get_the_problem_as_json(daemon: FakeDaemon) -> None:
    done = ctl("show", "--json", "nope", socket=daemon.path)
    assert done.stdout == b""
    assert json.loads(done.stderr)["error"]["code"] == "unknown_run"


def test_an_error_message_cannot_drive_the_terminal(daemon: FakeDaemon) -> None:
    daemon.fixed["GET /v1/node"] = problem(503, "unavailable", "bad \x1b]0;x\x07 news")
    assert b"\x1b" not in ctl("node", socket=daemon.path).stderr


def test_what_is_not_there_yet_is_said_in_the_daemons_words(daemon: FakeDaemon) -> None:
    words = "This version of executord has this path, and nothing behind it."
    daemon.fixed["POST /v1/node/resume"] = problem(501, "not_implemented", words)
    done = ctl("resume", socket=daemon.path)
    assert done.returncode == 1
    assert words in done.stderr.decode()


def test_the_socket_may_be_named_before_and_after_the_command(daemon: FakeDaemon) -> None:
    assert ctl("--socket", str(daemon.path), "ps").returncode == 0
    assert ctl("ps", "--socket", str(daemon.path)).returncode == 0


def test_the_option_counts_more_than_the_environment(daemon: FakeDaemon, tmp_path: Path) -> None:
    done = ctl("--socket", str(daemon.path), "ps", socket=tmp_path / "none")
    assert done.returncode == 0


# -- looking at runs -------------------------------------------------------------------------------


def test_ps_lists_living_runs_and_all_of_them_when_asked(daemon: FakeDaemon) -> None:
    old = daemon.add(project="a/b", command=["python", "x.py"])
    old.end("Failed", exit_code=3, reason="exit_code", side="user")
    daemon.add(project="c/d").go("Scheduled")
    living = ctl("ps", socket=daemon.path).stdout.decode()
    assert "r-2  c/d" in living
    assert "r-1" not in living
    everything = ctl("ps", "-a", socket=daemon.path).stdout.decode().splitlines()
    assert everything[0].split() == ["RUN", "PROJECT", "STATE", "SINCE", "TIER", "COMMAND", "WHY"]
    assert everything[1].startswith("r-2")
    assert "Failed" in everything[2]
    assert "python x.py" in everything[2]
    assert everything[2].endswith("Exit code 3.")


def test_ps_reads_every_page(daemon: FakeDaemon) -> None:
    for _ in range(5):
        daemon.add()
    listed = json.loads(ctl("ps", "--json", socket=daemon.path).stdout)["runs"]
    assert [run["id"] for run in listed] == ["r-5", "r-4", "r-3", "r-2", "r-1"]
    assert ctl("ps", "-q", "-n", "3", socket=daemon.path).stdout == b"r-5\nr-4\nr-3\n"


def test_ps_takes_states_in_any_case(daemon: FakeDaemon) -> None:
    daemon.add().go("Running")
    daemon.add()
    assert ctl("ps", "-q", "--state", "running", socket=daemon.path).stdout == b"r-1\n"


def test_show_draws_the_stages_and_explains_the_end(daemon: FakeDaemon) -> None:
    run = daemon.add(project="a/b", number=42, command=["python", "x.py"], labels={"team": "g"})
    run.go("Preparing", cost("queue", 0.2))
    run.go("Running", cost("prepare", 0.05, way="snapshot", files_from_cache=10))
    result = {
        "revision": "sha256:" + "a" * 64,
        "head": "moved",
        "added": 1,
        "skipped": ["pipe: a FIFO"],
        "diagnostics": {"R2": 0.93, "Loss": {"value": 2}},
    }
    run.end("Failed", exit_code=3, reason="exit_code", side="user", result=result)
    shown = ctl("show", "r-1", socket=daemon.path).stdout.decode()
    for expected in (
        "a/b #42",
        "python x.py",
        "team=g",
        "prepare 50 ms (snapshot; 10 files from cache)",
        "It ended so: exit_code.",
        "What to do: Read the console.",
        "exit_code",
        "1 added; kept as sha256:aaaaaaaaaaaa",
        "left out: pipe: a FIFO",
        "R2 = 0.93",
        "Loss = 2",
        "executorctl logs r-1",
    ):
        assert expected in shown
    bars = [line.split()[2] for line in shown.splitlines() if "·" in line or "█" in line]
    assert len(bars) == 3
    assert all(len(bar) == 30 and "█" in bar for bar in bars)


def test_show_of_a_living_run_says_what_is_being_done(daemon: FakeDaemon) -> None:
    run = daemon.add()
    run.facts["progress"] = {
        "pull": {"what": "pulling", "bytes_done": 1 << 20, "bytes_total": 4 << 20}
    }
    shown = ctl("show", "r-1", socket=daemon.path).stdout.decode()
    assert "pulling, 1.0 MiB of 4.0 MiB" in shown
    assert "executorctl logs -f r-1" in shown


def test_wait_ends_with_0_only_if_every_run_succeeded(daemon: FakeDaemon) -> None:
    good, bad = daemon.add(), daemon.add()
    good.end("Succeeded", exit_code=0)
    with Live("wait", "r-1", "r-2", socket=daemon.path) as live:
        live.until("out", b"r-1 Succeeded\n")
        bad.end("Failed", exit_code=3, reason="exit_code", side="user")
        assert live.end() == 1
        assert live.seen["out"] == b"r-1 Succeeded\nr-2 Failed  Exit code 3.\n"
    assert ctl("wait", "-q", "r-1", socket=daemon.path).returncode == 0


def test_wait_gives_up_when_its_time_is_over(daemon: FakeDaemon) -> None:
    daemon.add()
    began = time.monotonic()
    done = ctl("wait", "--timeout", "0.3", "r-1", socket=daemon.path)
    assert done.returncode == 1
    assert time.monotonic() - began < 10
    assert b"r-1 Queued" in done.stdout


# -- console, events -------------------------------------------------------------------------------


def test_logs_go_where_the_code_wrote_them(daemon: FakeDaemon) -> None:
    run = daemon.add()
    run.write(b"out\n")
    run.write(b"err\n", "stderr")
    run.write(b"\xff\x00\n")
    done = ctl("logs", "r-1", socket=daemon.path)
    assert done.stdout == b"out\n\xff\x00\n"
    assert done.stderr == b"err\n"


def test_logs_with_times_have_one_at_each_line(daemon: FakeDaemon) -> None:
    run = daemon.add()
    run.write(b"one\ntw")
    run.write(b"o\nthree")
    lines = ctl("logs", "-t", "r-1", socket=daemon.path).stdout.decode().split("\n")
    assert [line.partition("Z ")[2] for line in lines] == ["one", "two", "three"]
    assert lines[0][:2] == "20"


def test_logs_begin_where_they_are_told_to(daemon: FakeDaemon) -> None:
    daemon.add().write(b"0123456789")
    assert ctl("logs", "--since", "4", "r-1", socket=daemon.path).stdout == b"456789"


def test_logs_as_json_are_one_record_a_line(daemon: FakeDaemon) -> None:
    run = daemon.add()
    run.write(b"text\n")
    run.write(b"\xff")
    run.write(b"", "gap", lost_bytes=7)
    lines = ctl("logs", "--json", "r-1", socket=daemon.path).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["offset"] for record in records] == [0, 5, 6]
    assert records[0]["data"] == "text\n"
    assert records[1]["data_base64"] == "/w=="
    assert records[2]["lost_bytes"] == 7


def test_followed_logs_end_with_the_run(daemon: FakeDaemon) -> None:
    run = daemon.add()
    with Live("logs", "-f", "r-1", socket=daemon.path) as live:
        run.write(b"one\n")
        live.until("out", b"one\n")
        run.write(b"two\n")
        live.until("out", b"two\n")
        run.end("Succeeded", exit_code=0)
        assert live.end() == 0


def test_an_interrupted_following_ends_without_a_word_of_python(daemon: FakeDaemon) -> None:
    daemon.add().write(b"one\n")
    with Live("logs", "-f", "r-1", socket=daemon.path) as live:
        live.until("out", b"one\n")
        live.interrupt()
        assert live.end() == 130
        assert b"Traceback" not in live.seen["err"]


def test_events_are_listed_in_order_after_a_number(daemon: FakeDaemon) -> None:
    run = daemon.add()
    for state in ("Scheduled", "Preparing"):
        run.go(state)
    lines = ctl("events", "--after", "1", socket=daemon.path).stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["2", "3"]
    assert lines[0].endswith("r-1  Queued → Scheduled")


def test_followed_events_are_cloudevents_one_a_line(daemon: FakeDaemon) -> None:
    run = daemon.add()
    with Live("events", "-f", "--json", socket=daemon.path) as live:
        live.until("out", b'"seq":1')
        run.go("Scheduled")
        live.until("out", b'"seq":2')
        live.interrupt()
        assert live.end() == 130
        events = [json.loads(line) for line in live.seen["out"].splitlines()]
    assert [event["id"] for event in events] == ["node-1/r-1/1", "node-1/r-1/2"]


# -- doing -----------------------------------------------------------------------------------------


def test_submit_prints_the_id_and_is_safe_to_repeat(daemon: FakeDaemon) -> None:
    assignment = json.dumps({"id": "r-9", "command": ["true"]}).encode()
    for _ in range(2):
        done = ctl("submit", "-", stdin=assignment, socket=daemon.path)
        assert (done.returncode, done.stdout) == (0, b"r-9\n")
    assert daemon.runs["r-9"].submissions == 2
    other = json.dumps({"id": "r-9", "command": ["false"]}).encode()
    done = ctl("submit", "-", stdin=other, socket=daemon.path)
    assert done.returncode == 1
    assert b"Choose another id" in done.stderr


def test_submit_of_what_is_no_json_is_wrong_usage(daemon: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    done = ctl("submit", str(tmp_path / "a.json"), socket=daemon.path)
    assert done.returncode == 2
    assert b"is not JSON" in done.stderr


def test_stop_asks_each_run_and_fails_if_one_refuses(daemon: FakeDaemon) -> None:
    daemon.add()
    daemon.add().end("Succeeded", exit_code=0)
    done = ctl(
        "stop", "--discard", "--grace", "2.5", "--reason", "why", "r-1", "r-2", socket=daemon.path
    )
    assert done.returncode == 1
    assert daemon.stops == [
        {"run": "r-1", "results": "discard", "grace_seconds": 2.5, "reason": "why"}
    ]
    assert b"r-2: The run r-2 has ended." in done.stderr


def test_files_are_marked_with_sizes_and_odd_names_made_visible(daemon: FakeDaemon) -> None:
    daemon.add().facts["changes"] = [
        {"kind": "added", "size_bytes": 2048, "path": "new.txt"},
        {"kind": "changed", "size_bytes": 10, "path_base64": "Y2Fm6Q=="},
        {"kind": "deleted", "size_bytes": 0, "path": "old\n\x1b[2J"},
    ]
    assert ctl("files", "r-1", socket=daemon.path).stdout.decode() == (
        "A     2.0 KiB  new.txt\nM        10 B  caf\\xe9\nD              old^J^[[2J\n"
    )


def test_prune_says_what_would_go(daemon: FakeDaemon) -> None:
    victim = {
        "digest": "sha256:" + "a" * 64,
        "kind": "snapshot",
        "size_bytes": 10,
        "own_bytes": 5,
        "files": 2,
        "last_used": "2026-01-01T00:00:00.000000Z",
        "pinned_by": [],
    }
    daemon.fixed["POST /v1/cache/prune"] = (
        200,
        {"dry_run": True, "freed_bytes": 5 << 20, "victims": [victim], "victims_total": 1},
    )
    shown = ctl("cache", "prune", "--dry-run", socket=daemon.path).stdout.decode()
    assert "sha256:aaaaaaaaaaaa  snapshot" in shown
    assert shown.endswith("1 entry would go, freeing 5.0 MiB.\n")


# -- the node --------------------------------------------------------------------------------------


def test_node_shows_room_tiers_and_engine(daemon: FakeDaemon) -> None:
    daemon.fixed["GET /v1/node"] = (200, NODE)
    shown = ctl("node", socket=daemon.path).stdout.decode()
    for expected in ("node-1", "1 of 4 CPUs, 1.0 GiB of 8.0 GiB", "1 hold a slot, 2 wait"):
        assert expected in shown
    assert "small" in shown
    assert "version 20.10.24 (API 1.41)" in shown


def test_doctor_says_what_mends_it(daemon: FakeDaemon) -> None:
    daemon.fixed["GET /v1/node"] = (200, {**NODE, "engine": None})
    done = ctl("doctor", socket=daemon.path)
    assert done.returncode == 1
    assert b"bad      engine" in done.stdout
    assert b"systemctl status docker" in done.stdout


def test_doctor_of_a_node_that_is_well_only_warns(daemon: FakeDaemon) -> None:
    daemon.fixed["GET /v1/node"] = (200, NODE)
    done = ctl("doctor", socket=daemon.path)
    assert done.returncode == 0
    assert b"warning  live-restore" in done.stdout


NO_OVERLAY = {
    "chosen": "hardlink",
    "forced": False,
    "verdicts": [
        {"mode": "overlay", "works": False, "why": "an overlay cannot be the upper layer"},
        {"mode": "reflink", "works": False, "why": "blocks cannot be shared"},
        {"mode": "hardlink", "works": True, "why": ""},
        {"mode": "copy", "works": True, "why": ""},
    ],
}
WORKSPACE_WORDS = (
    "hardlink; not overlay: an overlay cannot be the upper layer; "
    "not reflink: blocks cannot be shared"
)


def test_node_says_how_runs_get_their_directories_and_why_not_better(daemon: FakeDaemon) -> None:
    daemon.fixed["GET /v1/node"] = (200, {**NODE, "workspaces": NO_OVERLAY})
    shown = " ".join(ctl("node", socket=daemon.path).stdout.decode().split())
    assert f"Workspaces: {WORKSPACE_WORDS}" in shown
    forced = {**NO_OVERLAY, "chosen": "copy", "forced": True}
    daemon.fixed["GET /v1/node"] = (200, {**NODE, "workspaces": forced})
    shown = " ".join(ctl("node", socket=daemon.path).stdout.decode().split())
    assert "copy (set by files.mode); not overlay" in shown
    assert "; hardlink would work too" in shown


def test_doctor_warns_where_every_runs_files_are_made_one_by_one(daemon: FakeDaemon) -> None:
    daemon.fixed["GET /v1/node"] = (200, {**NODE, "workspaces": NO_OVERLAY})
    done = ctl("doctor", socket=daemon.path)
    assert done.returncode == 0
    assert f"warning  workspaces    {WORKSPACE_WORDS}" in done.stdout.decode()
    assert b"Put `node.state_dir` on ext4, XFS or btrfs" in done.stdout
    forced = {**NO_OVERLAY, "chosen": "copy", "forced": True}
    daemon.fixed["GET /v1/node"] = (200, {**NODE, "workspaces": forced})
    shown = ctl("doctor", socket=daemon.path).stdout
    assert b"ok       workspaces    copy (set by files.mode)" in shown
    assert b"Put `node.state_dir`" not in shown
    well = {**NO_OVERLAY, "chosen": "overlay"}
    daemon.fixed["GET /v1/node"] = (200, {**NODE, "workspaces": well})
    assert b"ok       workspaces    overlay\n" in ctl("doctor", socket=daemon.path).stdout


def test_doctor_of_a_node_without_its_store_says_how_to_mend_it(daemon: FakeDaemon) -> None:
    daemon.fixed["GET /v1/node"] = (200, {**NODE, "store_url": "file:///no/such/store"})
    done = ctl("doctor", socket=daemon.path)
    assert done.returncode == 1
    mend = b"Mount its disk, or bring the directory back. Only for a new, empty store: `mkdir -p"
    assert mend in done.stdout


def test_following_a_daemon_that_was_never_there_is_exit_code_3_at_once(tmp_path: Path) -> None:
    for words in (("wait", "x"), ("logs", "-f", "x"), ("events", "-f")):
        assert ctl(*words, socket=tmp_path / "none").returncode == 3


def test_doctor_without_a_daemon_is_exit_code_3(tmp_path: Path) -> None:
    done = ctl("doctor", "--json", socket=tmp_path / "none")
    assert done.returncode == 3
    assert json.loads(done.stdout)["findings"][0]["verdict"] == "bad"


def test_doctor_tells_why_a_node_is_not_ready(daemon: FakeDaemon) -> None:
    daemon.fixed["GET /v1/node"] = (200, NODE)
    daemon.fixed["GET /readyz"] = problem(503, "not_ready", "The engine is silent.")
    done = ctl("doctor", socket=daemon.path)
    assert done.returncode == 1
    assert b"The engine is silent." in done.stdout

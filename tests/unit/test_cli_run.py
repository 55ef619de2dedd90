"""`executorctl run` as a process of its own, on a daemon that obeys a script."""

import json
import os
import pty
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.daemon import FakeDaemon
from tests.fakes.daemon_runs import FakeRun, cost, progress
from tests.fakes.executorctl import COMMAND, Live, ctl, environment


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as fake:
        yield fake


def running(run: FakeRun) -> None:
    run.go("Scheduled")
    run.go("Preparing")
    run.go("Running")
    run.write(b"at work\n")


def until_stopped(run: FakeRun) -> None:
    running(run)
    run.stopped.wait(30)
    run.go("StopRequested")
    run.go("Stopping")
    run.end("Stopped", exit_code=143, reason="stopped_by_request")


def ends(state: str, exit_code: int | None, **facts: Any) -> Any:
    def script(run: FakeRun) -> None:
        running(run)
        run.end(state, exit_code=exit_code, **facts)

    return script


def test_a_run_shows_its_console_on_stdout_and_its_states_on_stderr(daemon: FakeDaemon) -> None:
    done = ctl("run", "--id", "r-7", "--project", "a/b", "--", "echo", "hello", socket=daemon.path)
    assert done.returncode == 0
    assert done.stdout == b"hello\n"
    said = done.stderr.decode()
    shown = [line.split()[1].rstrip("]") for line in said.splitlines() if line.startswith("[")]
    assert shown == ["Queued", "Scheduled", "Preparing", "Running", "Finishing", "Succeeded"]
    assert "prepare 12 ms (3 files, 2.0 KiB from cache)" in said
    assert "r-7 Succeeded after" in said
    assert daemon.runs["r-7"].asked["command"] == ["echo", "hello"]


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("Succeeded", 0, 0),
        ("Failed", 3, 3),
        ("Failed", 137, 137),
        ("Failed", None, 1),
        ("Failed", 0, 1),
        ("Error", None, 1),
        ("Error", 0, 1),
        ("Stopped", 143, 143),
        ("Stopped", None, 1),
    ],
)
def test_it_exits_as_the_command_did_and_never_with_0_for_a_run_that_did_not_succeed(
    daemon: FakeDaemon, state: str, code: int | None, expected: int
) -> None:
    daemon.script = ends(state, code)
    assert ctl("run", "-q", "--", "x", socket=daemon.path).returncode == expected


def test_a_failed_run_says_why_whose_side_and_what_to_do(daemon: FakeDaemon) -> None:
    daemon.script = ends(
        "Failed",
        3,
        reason="exit_code",
        side="user",
        result={"revision": "sha256:" + "a" * 64, "head": "moved", "added": 2, "changed": 1},
        changes=[{"kind": "changed", "size_bytes": 1, "path": f"f{i}"} for i in range(12)],
        usage={"cpu_seconds": 1.25, "memory_peak_bytes": 200 << 20},
    )
    said = ctl("run", "--", "x", socket=daemon.path).stderr.decode()
    assert "Failed after" in said
    assert "(exit code 3)" in said
    assert "Whose side:" in said
    assert "the run's own" in said
    assert "What to do:  Read the console." in said
    assert "2 added, 1 changed; kept as sha256:aaaaaaaaaaaa, now the project's head" in said
    assert said.count(" M f") == 10
    assert "lists all of them" in said
    assert "200 MiB of memory at most" in said


def test_a_project_head_that_somebody_else_moved_is_said(daemon: FakeDaemon) -> None:
    result = {"revision": "sha256:" + "a" * 64, "head": "conflict", "added": 1}
    daemon.script = ends("Succeeded", 0, result=result)
    said = ctl("run", "--", "x", socket=daemon.path).stderr.decode()
    assert "the project's head does not come from the revision that the run began with" in said
    paths = {"conflicts": ["a", "b"], "conflict_count": 3}
    daemon.script = ends("Succeeded", 0, result={**result, **paths})
    said = ctl("run", "--", "x", socket=daemon.path).stderr.decode()
    assert "somebody else moved the project's head meanwhile and changed a, b and 1 more" in said
    assert f"executorctl pull sha256:{'a' * 64} DIR" in said


def test_binary_output_goes_into_a_pipe_unchanged(daemon: FakeDaemon) -> None:
    data = bytes(range(256)) + b"\x1b]0;x\x07"

    def script(run: FakeRun) -> None:
        running(run)
        run.write(data)
        run.write(b"to stderr\n", "stderr")
        run.write(b"Step 1\n", "build")
        run.end("Succeeded", exit_code=0)

    daemon.script = script
    done = ctl("run", "-q", "--", "x", socket=daemon.path)
    assert done.stdout == b"at work\n" + data
    assert b"to stderr\nStep 1\n" in done.stderr


def test_options_end_at_the_command(daemon: FakeDaemon) -> None:
    ctl("run", "-t", "big", "python", "-q", "--tier", "x", socket=daemon.path)
    (run,) = daemon.runs.values()
    assert run.asked["command"] == ["python", "-q", "--tier", "x"]
    assert run.asked["tier"] == "big"


def test_json_gives_one_document_on_stdout_and_the_console_on_stderr(daemon: FakeDaemon) -> None:
    done = ctl("--json", "run", "--", "x", socket=daemon.path)
    assert json.loads(done.stdout)["state"] == "Succeeded"
    assert b"hello\n" in done.stderr


def test_detaching_at_once_prints_the_id_alone(daemon: FakeDaemon) -> None:
    daemon.script = until_stopped
    done = ctl("run", "-d", "--id", "r-1", "--", "x", socket=daemon.path)
    assert done.returncode == 0
    assert done.stdout == b"r-1\n"
    assert b"executorctl logs -f r-1" in done.stderr
    daemon.runs["r-1"].stopped.set()


def test_a_lost_answer_to_the_submission_makes_no_second_run(daemon: FakeDaemon) -> None:
    daemon.replies_to_lose = 1
    done = ctl("run", "--", "x", socket=daemon.path)
    assert done.returncode == 0
    (run,) = daemon.runs.values()
    assert run.submissions == 2


def test_a_refused_submission_says_what_the_node_has(daemon: FakeDaemon) -> None:
    done = ctl("run", "-t", "none", "--", "x", socket=daemon.path)
    assert done.returncode == 1
    assert "There is no tier 'none'. (/tier)" in done.stderr.decode()
    assert "executorctl node" in done.stderr.decode()


def test_the_first_interrupt_asks_to_stop_and_the_end_is_still_shown(daemon: FakeDaemon) -> None:
    daemon.script = until_stopped
    with Live("run", "--id", "r-1", "--", "x", socket=daemon.path) as live:
        live.until("out", b"at work\n")
        live.interrupt()
        assert live.end() == 143
        said = live.seen["err"].decode()
    assert daemon.stops == [{"run": "r-1", "reason": "Ctrl-C in executorctl"}]
    assert "Asked r-1 to stop; Ctrl-C again detaches" in said
    assert "r-1 Stopped after" in said


def test_the_second_interrupt_detaches_and_says_how_to_come_back(daemon: FakeDaemon) -> None:
    release: list[bool] = []

    def script(run: FakeRun) -> None:
        running(run)
        run.stopped.wait(30)
        while not release:
            time.sleep(0.01)

    daemon.script = script
    with Live("run", "--id", "r-1", "--", "x", socket=daemon.path) as live:
        live.until("out", b"at work\n")
        live.interrupt()
        live.until("err", b"Asked r-1 to stop")
        live.interrupt()
        assert live.end() == 130
        assert (
            b"Detached: r-1 goes on; follow it with `executorctl logs -f r-1`."
            in (live.seen["err"])
        )
    assert len(daemon.stops) == 1
    release.append(True)


def test_a_daemon_that_restarts_is_waited_for(daemon: FakeDaemon) -> None:
    daemon.script = until_stopped
    with Live("run", "--id", "r-1", "--", "x", socket=daemon.path) as live:
        live.until("out", b"at work\n")
        daemon.stop()
        live.until("err", b"Trying again")
        daemon.start()
        live.until("err", b"Connected to the daemon again.")
        daemon.runs["r-1"].write(b"still at work\n")
        live.until("out", b"still at work\n")
        daemon.runs["r-1"].stopped.set()
        assert live.end() == 143
        assert live.seen["out"] == b"at work\nstill at work\n"


def test_a_reader_that_leaves_ends_it_without_a_word_of_python(daemon: FakeDaemon) -> None:
    def script(run: FakeRun) -> None:
        running(run)
        for _ in range(200):
            run.write(b"x" * 10_000 + b"\n")
        run.stopped.wait(30)

    daemon.script = script
    with Live("run", "--id", "r-1", "--", "x", socket=daemon.path) as live:
        live.until("out", b"at work\n")
        assert live.process.stdout is not None
        live.process.stdout.close()
        live._streams.pop("out")
        code = live.end()
        said = live.seen["err"].decode()
    assert code == 141
    assert "r-1 goes on" in said
    assert "Traceback" not in said
    daemon.runs["r-1"].stopped.set()


def test_a_gap_in_the_console_is_marked(daemon: FakeDaemon) -> None:
    def script(run: FakeRun) -> None:
        running(run)
        run.write(b"", "gap", lost_bytes=5 << 20)
        run.write(b"tail\n")
        run.end("Succeeded", exit_code=0)

    daemon.script = script
    done = ctl("run", "--", "x", socket=daemon.path)
    assert done.stdout == b"at work\ntail\n"
    assert "[… 5.0 MiB of output is missing here …]" in done.stderr.decode()


def on_a_terminal(daemon: FakeDaemon, *arguments: str, **variables: str) -> tuple[int, str]:
    """The exit code, and all that a terminal would have got."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment(daemon.path, TERM="xterm", COLUMNS="120", **variables),
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    return process.wait(30), seen.decode()


def slowly(run: FakeRun) -> None:
    run.go("Scheduled")
    run.go("Preparing")
    for done in range(4):
        run.show(
            prepare=progress("fetching", files_done=done, files_total=4, bytes_total=4 << 20),
            build=progress("building", step=done, steps=4, detail="RUN [bold]pip"),
        )
        time.sleep(0.25)
    run.show()
    run.go("Running", cost("prepare", 1.0))
    run.write(b"\x1b[31mred\x1b[0m \x1b]0;evil\x07\x1b[2J no line end")
    run.end("Succeeded", exit_code=0)


def test_a_terminal_gets_bars_and_colours_but_no_control_sequence_of_the_code(
    daemon: FakeDaemon,
) -> None:
    daemon.script = slowly
    code, seen = on_a_terminal(daemon, "run", "--id", "r-1", "--", "x")
    assert code == 0
    assert "fetching" in seen
    assert "of 4 files" in seen
    assert "RUN [bold]pip" in seen
    assert "\x1b[34mRunning" in seen
    assert "\x1b[31mred\x1b[0m ^[]0;evil^G no line end\r\n" in seen
    assert seen.index("no line end") < seen.index("Succeeded")
    assert "\x1b]0;evil" not in seen
    assert "\x1b[2J" not in seen


def test_no_color_leaves_colours_out_on_a_terminal_too(daemon: FakeDaemon) -> None:
    code, seen = on_a_terminal(daemon, "run", "--id", "r-1", "--", "x", NO_COLOR="1")
    assert code == 0
    assert "\x1b[3" not in seen
    assert "Succeeded" in seen


def test_raw_lets_everything_through(daemon: FakeDaemon) -> None:
    daemon.script = slowly
    _, seen = on_a_terminal(daemon, "run", "--raw", "--", "x")
    assert "\x1b]0;evil\x07" in seen

"""What set-up may touch, and who starts and stops the engine that several of them share."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.setup import images, processes
from tests.setup.clean import mounts_below
from tests.setup.docker_http import EngineError, EngineHttp
from tests.setup.engine import OwnEngine
from tests.setup.sharing import Sharing
from tests.setup.state import CLONE, DevFolder, FileLock, SetupError, open_dev_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_SECONDS = 20.0


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[DevFolder]:
    with tempfile.TemporaryDirectory(prefix="executord-dev-", dir="/tmp") as root:
        monkeypatch.setenv("EXECUTORD_DEV_DIR", root)
        yield open_dev_folder()


@contextlib.contextmanager
def process_called(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that waits for input, under these arguments, as /proc shows them."""
    shell = [arguments[0], "-c", "echo ready; read line", *arguments[1:]]
    with subprocess.Popen(
        shell, executable="/bin/sh", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


# Whose process it is


def test_the_pid_of_a_stranger_in_a_stale_pidfile_is_not_signalled(folder: DevFolder) -> None:
    with process_called("python3", "serve") as stranger:
        folder.pidfile.write_text(f"{stranger.pid}\n")
        OwnEngine(folder).stop()
        assert stranger.poll() is None
    assert not folder.pidfile.exists()


def test_an_engine_with_another_folder_is_not_signalled(folder: DevFolder) -> None:
    elsewhere = f"--pidfile={folder.root}-2/run/docker.pid"
    with process_called("dockerd", elsewhere) as other:
        folder.pidfile.write_text(f"{other.pid}\n")
        OwnEngine(folder).stop()
        assert other.poll() is None


def test_a_program_that_only_names_the_folder_is_not_signalled(folder: DevFolder) -> None:
    with process_called("tail", "-f", str(folder.log)) as reader:
        folder.pidfile.write_text(f"{reader.pid}\n")
        OwnEngine(folder).stop()
        assert reader.poll() is None


def test_what_is_left_of_the_folders_own_engine_is_ended(folder: DevFolder) -> None:
    daemon = process_called("/usr/sbin/dockerd", f"--pidfile={folder.pidfile}")
    shim = process_called("/usr/bin/containerd-shim-runc-v2", "-address", f"{folder.exec_root}/c")
    with daemon as first, shim as second:
        folder.pidfile.write_text(f"{first.pid}\n")
        assert OwnEngine(folder).is_running()
        OwnEngine(folder).stop()
        assert first.wait(WAIT_SECONDS) == -signal.SIGTERM
        assert second.wait(WAIT_SECONDS) == -signal.SIGTERM
    assert not OwnEngine(folder).is_running()


@pytest.mark.parametrize("text", ["", "0", "1", "-5", "no number", "12 13"])
def test_a_pidfile_without_a_usable_pid_names_nobody(folder: DevFolder, text: str) -> None:
    folder.pidfile.write_text(text)
    assert processes.pid_in(folder.pidfile) is None


def test_ending_a_process_that_is_gone_does_nothing() -> None:
    with process_called("dockerd") as process:
        process.kill()
    assert not processes.end(process.pid, lambda _pid: True, grace_seconds=0)


def test_a_process_that_ignores_the_request_is_killed_after_the_grace() -> None:
    ignoring = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", ignoring], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes.end(process.pid, lambda _pid: True, grace_seconds=0.1)
        assert process.wait(WAIT_SECONDS) == -signal.SIGKILL


@pytest.mark.parametrize("is_first", [False, True])
def test_an_engine_that_hangs_is_ended_only_when_nobody_else_uses_it(
    folder: DevFolder, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    monkeypatch.setattr("tests.setup.engine.HANG_SECONDS", 0.1)
    monkeypatch.setattr("tests.setup.engine._check_machine", no_engine_today)
    with process_called("dockerd", f"--pidfile={folder.pidfile}") as hanging:
        folder.pidfile.write_text(f"{hanging.pid}\n")
        said = "no engine today" if is_first else "which others use, does not answer"
        with pytest.raises(SetupError, match=said):
            OwnEngine(folder).ensure(is_first=is_first)
        assert (hanging.poll() is not None) == is_first


def no_engine_today() -> None:
    raise SetupError("no engine today")


# Who starts and who stops


class SharedThing:
    """Notes what happens to it, as an engine that starts and stops at once."""

    def __init__(self) -> None:
        self.happened: list[str] = []

    def ensure(self, *, is_first: bool) -> None:
        self.happened.append("ensured for the first" if is_first else "ensured for one more")

    def stop(self) -> None:
        self.happened.append("stopped")


def test_the_last_user_stops_the_engine_and_no_earlier_one(folder: DevFolder) -> None:
    thing = SharedThing()
    with Sharing(folder).joined(thing):
        with Sharing(folder).joined(thing):
            pass
        assert thing.happened == ["ensured for the first", "ensured for one more"]
    assert thing.happened[2:] == ["stopped"]


def test_the_first_user_may_leave_before_the_last(folder: DevFolder) -> None:
    thing = SharedThing()
    first, second = Sharing(folder).joined(thing), Sharing(folder).joined(thing)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert "stopped" not in thing.happened
    second.__exit__(None, None, None)
    assert thing.happened[-1] == "stopped"


def test_an_engine_that_is_kept_outlives_its_users(folder: DevFolder) -> None:
    thing = SharedThing()
    sharing = Sharing(folder)
    with sharing.joined(thing):
        sharing.keep()
    with Sharing(folder).joined(thing):
        pass
    assert "stopped" not in thing.happened


def test_stopping_a_kept_engine_in_use_leaves_it_to_its_last_user(folder: DevFolder) -> None:
    thing = SharedThing()
    sharing = Sharing(folder)
    with sharing.joined(thing):
        sharing.keep()
        with Sharing(folder).alone() as alone:
            assert not alone
        assert "stopped" not in thing.happened
    assert thing.happened[-1] == "stopped"


def test_a_user_that_fails_still_leaves(folder: DevFolder) -> None:
    thing = SharedThing()
    with pytest.raises(ZeroDivisionError), Sharing(folder).joined(thing):
        raise ZeroDivisionError
    assert thing.happened[-1] == "stopped"


def test_an_engine_that_does_not_start_has_no_user(folder: DevFolder) -> None:
    class Broken(SharedThing):
        def ensure(self, *, is_first: bool) -> None:
            no_engine_today()

    with pytest.raises(SetupError), Sharing(folder).joined(Broken()):
        pytest.fail("nobody may go on without an engine")
    with Sharing(folder).alone() as alone:
        assert alone


def test_a_user_that_was_killed_is_no_user_any_more(folder: DevFolder) -> None:
    joining = f"""
import pathlib, sys
from tests.setup.sharing import Sharing
from tests.setup.state import DevFolder
class Thing:
    def ensure(self, *, is_first): pass
    def stop(self): pass
with Sharing(DevFolder(pathlib.Path({str(folder.root)!r}))).joined(Thing()):
    print("joined", flush=True)
    sys.stdin.read()
"""
    thing = SharedThing()
    with subprocess.Popen(
        [sys.executable, "-c", joining], cwd=CLONE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"joined\n"
        with Sharing(folder).joined(thing):
            pass
        assert thing.happened == ["ensured for one more"]
        other.kill()
        other.wait()
    with Sharing(folder).joined(thing):
        pass
    assert thing.happened[1:] == ["ensured for the first", "stopped"]


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_on_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = FileLock(path), FileLock(path)
    first.take()
    waiting = threading.Thread(target=second.take)
    waiting.start()
    path.unlink()
    first.release()
    waiting.join(WAIT_SECONDS)
    assert not FileLock(path).try_take()
    second.release()
    assert FileLock(path).try_take()


# The wrapper around a command, with an engine that somebody else runs


class ForeignEngine(BaseHTTPRequestHandler):
    """Answers what set-up asks of an engine that holds the images; notes all it is asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        for image in images.IMAGES:
            if self.path == f"/images/{image.name}/json":
                self._answer({"Config": {"Labels": {images.LABEL: image.made_from}}})
                return
        self._answer("OK" if self.path == "/_ping" else {"Version": "24.0"})

    def do_POST(self) -> None:
        self.asked.append(f"POST {self.path}")
        self.send_error(500)

    def _answer(self, body: object) -> None:
        payload = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: object) -> None:
        pass

    def address_string(self) -> str:
        return "a Unix socket"


class UnixHttpServer(HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(str(self.server_address))


@contextlib.contextmanager
def engine_of_somebody_else(path: Path) -> Iterator[list[str]]:
    asked: list[str] = []
    handler = type("Handler", (ForeignEngine,), {"asked": asked})
    with UnixHttpServer(str(path), handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def engine(folder: DevFolder) -> Iterator[tuple[Path, list[str]]]:
    """The socket of an engine that is not set-up's own, and what it was asked so far."""
    path = folder.root / "foreign.sock"
    with engine_of_somebody_else(path) as asked:
        yield path, asked


@contextlib.contextmanager
def wrapped(engine: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command under the wrapper, as make starts it."""
    with subprocess.Popen(
        [sys.executable, "-S", "-m", "tests.setup.engine", "run", "--", *command],
        cwd=CLONE,
        env={**os.environ, "DOCKER_HOST": f"unix://{engine}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_an_engine_that_answers_is_used_and_only_read_from(
    engine: tuple[Path, list[str]], folder: DevFolder
) -> None:
    path, asked = engine
    with wrapped(path, "sh", "-c", "echo $DOCKER_HOST; exit 7") as process:
        out, err = process.communicate(timeout=WAIT_SECONDS)
    assert out == f"unix://{path}\n"
    assert process.returncode == 7
    assert f"using the engine 24.0 that answers at {path}" in err
    assert all(line.startswith("GET ") for line in asked)
    assert not folder.pidfile.exists()


def test_a_command_ended_by_a_signal_gives_the_shells_status(
    engine: tuple[Path, list[str]],
) -> None:
    with wrapped(engine[0], "sh", "-c", "kill -KILL $$") as process:
        process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_is_named(engine: tuple[Path, list[str]]) -> None:
    with wrapped(engine[0], "/no/such/command") as process:
        _, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1
    assert "cannot run /no/such/command: No such file" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_the_commands_status_returned(
    engine: tuple[Path, list[str]], number: signal.Signals
) -> None:
    counting = (
        "import signal, time; got = []; "
        f"signal.signal({int(number)}, lambda *_: got.append(1)); print('ready', flush=True)\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(0.3); print(len(got)); raise SystemExit(5)"
    )
    with wrapped(engine[0], sys.executable, "-c", counting) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "1\n"
        assert process.wait(WAIT_SECONDS) == 5


def test_an_engine_that_refuses_is_quoted(engine: tuple[Path, list[str]]) -> None:
    with pytest.raises(EngineError, match=r"status 500"):
        EngineHttp(engine[0]).post("/containers/create", {})


def test_a_socket_that_nobody_listens_on_does_not_answer(folder: DevFolder) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder.socket))
    assert not EngineHttp(folder.socket).answers()


# The folder


def test_a_path_that_sockets_would_not_fit_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTORD_DEV_DIR", f"/tmp/{'x' * 60}")
    with pytest.raises(SetupError, match="at most 60 bytes"):
        open_dev_folder()


def test_a_folder_behind_a_link_is_refused(
    folder: DevFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = folder.root / "link"
    link.symlink_to(folder.run)
    monkeypatch.setenv("EXECUTORD_DEV_DIR", str(link))
    with pytest.raises(SetupError, match="is a link"):
        open_dev_folder()


def test_mounts_in_the_folder_are_found_innermost_first_and_no_neighbours() -> None:
    mountinfo = [
        "22 1 254:0 / / rw - ext4 /dev/vda rw",
        "40 22 0:30 / /var/tmp/dev/data rw - tmpfs none rw",
        "41 40 0:31 / /var/tmp/dev/data/overlay2/a/merged rw - overlay overlay rw",
        "42 22 0:32 / /var/tmp/dev/run/with\\040space rw - nsfs nsfs rw",
        "43 22 0:33 / /var/tmp/dev-2/data rw - tmpfs none rw",
    ]
    assert mounts_below(Path("/var/tmp/dev"), mountinfo) == [
        Path("/var/tmp/dev/data/overlay2/a/merged"),
        Path("/var/tmp/dev/run/with space"),
        Path("/var/tmp/dev/data"),
    ]


# The locks


def pinned(path: str) -> dict[str, str]:
    lines = (CLONE / path).read_text().splitlines()
    heads = [line.removesuffix(" \\").split("==") for line in lines if line[:1].isalnum()]
    return {name: version for name, version in heads}  # noqa: C416


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_-]", line)[0].lower() for line in requirements}


def test_the_locks_hold_all_that_the_project_names() -> None:
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    runtime, everything = pinned("systemd/requirements.txt"), pinned("tests/requirements.txt")
    assert names(project["dependencies"]) <= runtime.keys()
    assert names(project["optional-dependencies"]["dev"]) <= everything.keys()
    assert runtime.items() <= everything.items()


@pytest.mark.parametrize("path", ["systemd/requirements.txt", "tests/requirements.txt"])
def test_a_lock_holds_versions_and_hashes_and_no_place_to_look(path: str) -> None:
    shapes = r"#.*|[a-z0-9-]+==[^ ]+ \\|    --hash=sha256:[0-9a-f]{64}(?: \\)?"
    lines = (CLONE / path).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(shapes, line)] == []

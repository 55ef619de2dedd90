"""
A Docker engine for tests, demo and benchmarks.

    python -m tests.setup.engine run -- COMMAND…   with an engine, DOCKER_HOST set
    python -m tests.setup.engine start             start one and let it stay
    python -m tests.setup.engine stop              end that again

An engine that already answers (DOCKER_HOST, /var/run/docker.sock) is used and never stopped.
Else one is started from Debian's package, with all its data in the development folder, where
several set-ups share it (`sharing.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup import apt, images, processes
from tests.setup.docker_http import EngineError, EngineHttp
from tests.setup.sharing import Sharing
from tests.setup.state import DevFolder, SetupError, carry_out, open_dev_folder, say

if TYPE_CHECKING:
    from types import FrameType

USUAL_SOCKET = Path("/var/run/docker.sock")
PROGRAMS = {
    "dockerd": "docker.io",
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
}
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
START_SECONDS = 60.0
HANG_SECONDS = 30.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 25


def engine_that_is_there(folder: DevFolder) -> EngineHttp | None:
    """Give an engine that answers and that is not the one in the folder."""
    named = os.environ.get("DOCKER_HOST", "")
    sockets = [Path(named.removeprefix("unix://"))] if named.startswith("unix://") else []
    if folder.socket in sockets:
        return None
    for path in [*sockets, USUAL_SOCKET]:
        engine = EngineHttp(path)
        if engine.answers():
            return engine
    if named:
        say(f"DOCKER_HOST={named} does not answer on a Unix socket; using an engine of our own")
    return None


class OwnEngine:
    """The engine in a development folder; who calls here holds the lock `engine`."""

    def __init__(self, folder: DevFolder) -> None:
        self.folder = folder
        self.http = EngineHttp(folder.socket)

    def is_running(self) -> bool:
        return any(self._is_ours(pid) for pid in processes.all_pids())

    def ensure(self, *, is_first: bool) -> None:
        """Make sure that it answers; a first user also clears away what earlier ones left."""
        if not self.http.answers():
            self._start(is_first=is_first)
        if is_first and not self.folder.kept.exists():
            self._remove_leftovers()

    def stop(self) -> None:
        """End containers, daemon, containerd and shims of this folder, and nothing else."""
        was_running = self.is_running()
        if self.http.answers():
            self._remove_leftovers()
        pid = self._daemon_pid()
        if pid is not None:
            processes.end(pid, self._is_ours, grace_seconds=STOP_SECONDS)
        self._end_what_outlived_the_daemon()
        self.folder.socket.unlink(missing_ok=True)
        self.folder.pidfile.unlink(missing_ok=True)
        if was_running:
            say("stopped the engine")

    def _is_ours(self, pid: int) -> bool:
        return processes.works_for(pid, self.folder.run)

    def _start(self, *, is_first: bool) -> None:
        hanging = self._daemon_pid()
        if hanging is not None:
            if self._answers_within(HANG_SECONDS):
                return
            if not is_first:
                raise SetupError(
                    f"the engine (pid {hanging}), which others use, does not answer; "
                    f"see {self.folder.log}, or end the others and run `make engine-stop`"
                )
            say("the engine of an earlier set-up does not answer; stopping it")
            self.stop()
        _check_machine()
        _install_programs()
        self.folder.socket.unlink(missing_ok=True)
        self.folder.pidfile.unlink(missing_ok=True)
        say(f"starting a Docker engine with its data in {self.folder.data}")
        began = time.monotonic()
        self._wait_for_answer(self._spawn(), began + START_SECONDS)
        say(f"engine {self.http.version()} answers after {time.monotonic() - began:.1f} s")

    def _daemon_pid(self) -> int | None:
        pid = processes.pid_in(self.folder.pidfile)
        daemon = frozenset({"dockerd"})
        if pid is None or not processes.works_for(pid, self.folder.run, daemon):
            return None
        return pid

    def _answers_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.http.answers():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        folder = self.folder
        settings = folder.run / "daemon.json"
        settings.write_text("{}\n")
        with folder.log.open("wb") as log:
            return subprocess.Popen(
                [
                    "dockerd",
                    f"--config-file={settings}",
                    f"--data-root={folder.data}",
                    f"--exec-root={folder.exec_root}",
                    f"--pidfile={folder.pidfile}",
                    f"--host=unix://{folder.socket}",
                    "--live-restore",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )

    def _wait_for_answer(self, daemon: subprocess.Popen[bytes], deadline: float) -> None:
        while not self.http.answers():
            if daemon.poll() is not None:
                trouble = f"ends at once with status {daemon.returncode}"
            elif time.monotonic() > deadline:
                trouble = f"does not answer within {START_SECONDS:.0f} s"
                self.stop()
            else:
                time.sleep(POLL_SECONDS)
                continue
            raise SetupError(
                f"dockerd {trouble}; mend what the end of {self.folder.log} names, or start an "
                f"engine yourself and set DOCKER_HOST:\n{_tail(self.folder.log)}"
            )

    def _end_what_outlived_the_daemon(self) -> None:
        containers = self._container_ids()
        for pid in processes.all_pids():
            processes.end(
                pid, lambda pid: processes.runs_in_container(pid, containers), grace_seconds=0
            )
        for pid in processes.all_pids():
            processes.end(pid, self._is_ours, grace_seconds=5)

    def _container_ids(self) -> frozenset[str]:
        try:
            return frozenset(path.name for path in (self.folder.data / "containers").iterdir())
        except FileNotFoundError:
            return frozenset()

    def _remove_leftovers(self) -> None:
        """Remove containers and volumes; the engine is ours alone, so all of them are ours."""
        try:
            containers = self.http.get("/containers/json?all=true")
            for container in containers:
                self.http.delete(f"/containers/{container['Id']}?force=true&v=true")
            if containers:
                say(f"removed {len(containers)} containers that were left over")
            for volume in self.http.get("/volumes").get("Volumes") or []:
                self.http.delete(f"/volumes/{volume['Name']}")
        except EngineError as error:
            say(f"could not remove all that was left over: {error}")


def _environment() -> dict[str, str]:
    found = os.environ.get("PATH", os.defpath).split(os.pathsep)
    missing = [name for name in SYSTEM_FOLDERS if name not in found]
    return {**os.environ, "PATH": os.pathsep.join([*found, *missing])}


def _install_programs() -> None:
    path = _environment()["PATH"]
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if "dockerd" in missing:
        apt.install(["docker.io", "iptables"])
    elif missing:
        apt.install([PROGRAMS[name] for name in missing])


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise SetupError(
            "no Docker engine answers, and only root can start one; run this as root, "
            "or start an engine and set DOCKER_HOST to its unix:// socket"
        )
    mounts = Path("/proc/mounts").read_text().splitlines()
    if not any(line.split()[2] in {"cgroup", "cgroup2"} for line in mounts):
        raise SetupError(
            "no control groups are mounted, and an engine cannot run without; "
            "run `mount -t cgroup2 none /sys/fs/cgroup`, then try again"
        )


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines)


def run_with_engine(command: list[str]) -> int:
    """Give the command's exit status; 128 + N when signal N ended it."""
    folder = open_dev_folder()
    there = engine_that_is_there(folder)
    if there is not None:
        say(f"using the engine {there.version()} that answers at {there.socket_path}")
        images.ensure(there, folder)
        return _run(command, there.socket_path)
    own = OwnEngine(folder)
    with Sharing(folder).joined(own):
        images.ensure(own.http, folder)
        return _run(command, folder.socket)


def _run(command: list[str], socket: Path) -> int:
    """
    Run the command in a process group of its own, so that a Ctrl-C reaches it once: from us.

    SIGINT goes to the whole group, as a terminal would send it, SIGTERM to the command.
    """
    child: subprocess.Popen[bytes] | None = None
    came_early: list[int] = []

    def pass_on(number: int, _frame: FrameType | None = None) -> None:
        if child is None:
            came_early.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGINT:
                os.killpg(child.pid, number)
            else:
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    try:
        child = subprocess.Popen(
            command,
            env={**os.environ, "DOCKER_HOST": f"unix://{socket}"},
            stdin=subprocess.DEVNULL if sys.stdin.isatty() else None,
            process_group=0,
        )
    except OSError as error:
        raise SetupError(f"cannot run {command[0]}: {error.strerror}") from error
    for early in came_early:
        pass_on(early)
    status = child.wait()
    return status if status >= 0 else 128 - status


def start() -> int:
    folder = open_dev_folder()
    there = engine_that_is_there(folder)
    if there is not None:
        say(f"an engine answers at {there.socket_path} already; it is used, and never stopped")
        images.ensure(there, folder)
        return 0
    own = OwnEngine(folder)
    sharing = Sharing(folder)
    with sharing.joined(own):
        images.ensure(own.http, folder)
        sharing.keep()
    say(f"the engine stays up until `make engine-stop`: DOCKER_HOST=unix://{folder.socket}")
    return 0


def stop() -> int:
    folder = open_dev_folder()
    own = OwnEngine(folder)
    if not own.is_running():
        say("no engine of ours is running")
    with Sharing(folder).alone() as alone:
        if alone:
            own.stop()
        else:
            say("others use the engine; the last of them stops it")
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.setup.engine")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run a command with an engine")
    run.add_argument("command", nargs="+")
    actions.add_parser("start", help="start an engine that stays")
    actions.add_parser("stop", help="stop it")
    chosen = parser.parse_args(arguments)
    if chosen.action == "run":
        return run_with_engine(chosen.command)
    return {"start": start, "stop": stop}[chosen.action]()


if __name__ == "__main__":
    sys.exit(carry_out(lambda: main(sys.argv[1:])))

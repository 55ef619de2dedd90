"""Does one thing to a file cache in a process of its own, which dies, or is refused, at its Nth
effect on the disk.

The server (`python -m tests.fakes.files_worker`) reads a JSON object a line, and forks for each, so
that the imports are paid for once. An effect is a name made, moved or removed, or a file opened for
writing, as the interpreter's audit events tell them, counted over all threads. A kill comes right
before effect N, so that everything until then is there, and nothing after it.
"""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from executord.core.reasons import FaultError
from executord.files.cache.nearest import Prices
from executord.files.client.push import push_directory
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from tests.fakes import files_mutants
from tests.fakes.files import ended_run, ignore_progress, project_files

ALWAYS_LAYERS = Prices(small_tree=0, least=0, share=0.0, most_share=1e6)
KILLED = -int(signal.SIGKILL)

_ROOT = Path(__file__).parents[2]
_EFFECTS = {
    "os.chmod",
    "os.chown",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "shutil.move",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_REFUSAL_SPARES = {"os.remove", "os.rmdir"}  # a full disk never refuses these


@dataclass(kw_only=True)
class Order:
    """What is to be done. `at` 0: nothing happens on the way, and the effects are counted."""

    operation: str
    state: str
    store: str
    revision: str = ""
    base: str = ""
    project: str = ""
    at: int = 0
    kill: bool = True
    mutant: str = ""
    again: bool = False


@dataclass(kw_only=True)
class Outcome:
    """`status` is the process's. `reason` is that of the fault it ended with, or ""."""

    status: int
    effects: int = 0
    reason: str = ""
    revision: str = ""
    head: str = ""
    way: str = ""
    tmp: list[str] = field(default_factory=list)
    error: str = ""


class Accident:
    """Counts what is done to the disk below `root`, and lets number `at` be the last, or fail."""

    def __init__(self, root: str, at: int, *, kill: bool) -> None:
        self.seen = 0
        self.armed = False
        self._root = root
        self._at = at
        self._kill = kill

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed or not self._is_effect(event, arguments):
            return
        self.seen += 1
        if self.seen != self._at:
            return
        if self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if event not in _REFUSAL_SPARES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    def _is_effect(event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 else 0
            path = str(arguments[0])
            if path.startswith(("/proc/", "/dev/")):
                return False
            return isinstance(flags, int) and bool(flags & _WRITING)
        return event in _EFFECTS


Operation = Callable[[ProjectFiles, Order, Accident], Awaitable[dict[str, str]]]


async def _prepare(files: ProjectFiles, order: Order, accident: Accident) -> dict[str, str]:
    accident.armed = True
    prepared = await files.prepare("r-1", order.revision, ignore_progress)
    return {"revision": order.revision, "way": prepared.cost.way}


async def _flatten(files: ProjectFiles, order: Order, accident: Accident) -> dict[str, str]:
    flattener = files._parts.builds.flattener
    flattener._flatten_depth = 1
    accident.armed = True
    while await asyncio.to_thread(flattener.do_one_thing):
        pass
    return {}


async def _evict(files: ProjectFiles, order: Order, accident: Accident) -> dict[str, str]:
    accident.armed = True
    await files.prune(dry_run=False)
    await asyncio.to_thread(files._parts.sweeper.empty_trash, threading.Event())
    return {}


async def _keep(files: ProjectFiles, order: Order, accident: Accident) -> dict[str, str]:
    workspace = (await files.prepare("r-2", order.revision, ignore_progress)).workspace
    accident.armed = True
    kept = await files.keep(ended_run("r-1", workspace), ignore_progress)
    return {"revision": kept.result.revision, "head": kept.result.head}


async def _discard(files: ProjectFiles, order: Order, accident: Accident) -> dict[str, str]:
    accident.armed = True
    await files.discard("r-1", keep_workspace=False)
    return {}


async def _push(files: ProjectFiles, order: Order, accident: Accident) -> dict[str, str]:
    accident.armed = True
    store = Store.open(order.store, {})
    pushed = await asyncio.to_thread(
        push_directory,
        store,
        Path(order.project),
        "alice/churn",
        author="alice",
        cache_home=Path(order.state) / "hashes",
    )
    return {"revision": pushed.revision, "head": pushed.head}


OPERATIONS: dict[str, Operation] = {
    "prepare": _prepare,
    "flatten": _flatten,
    "evict": _evict,
    "keep": _keep,
    "discard": _discard,
    "push": _push,
}


async def carry_out(order: Order) -> Outcome:
    accident = Accident(order.state, order.at, kill=order.kill)
    sys.addaudithook(accident)
    files = project_files(Path(order.state), order.store)
    builds = files._parts.builds
    builds._tools = replace(builds._tools, prices=ALWAYS_LAYERS)
    builds.flattener.idle_seconds = 3600.0
    if order.mutant:
        files_mutants.plant(order.mutant, files)
    await files.open()
    outcome = Outcome(status=0)
    try:
        try:
            told = await OPERATIONS[order.operation](files, order, accident)
        except FaultError as error:
            outcome.reason = error.fault.reason
            accident.armed = False
            outcome.tmp = [path.name for path in (Path(order.state) / "tmp").iterdir()]
            if order.again:
                told = await OPERATIONS[order.operation](files, order, Accident("", 0, kill=False))
            else:
                told = {}
        outcome.effects = accident.seen
        for name, value in told.items():
            setattr(outcome, name, value)
    finally:
        accident.armed = False
        await files.close()
    return outcome


# -- the server ------------------------------------------------------------------------------------


def _serve() -> None:
    for line in sys.stdin:
        order = Order(**json.loads(line))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be_the_child(order, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        answer = json.loads(told) if told and code == 0 else {"error": told.decode()}
        print(json.dumps({**answer, "status": code}), flush=True)


def _be_the_child(order: Order, writing: int) -> None:
    status = 1
    try:
        sys.stdout = sys.stderr
        outcome = asyncio.run(carry_out(order))
        os.write(writing, json.dumps(vars(outcome)).encode())
        status = 0
    except BaseException:  # noqa: BLE001 - it is told, whatever it is
        os.write(writing, traceback.format_exc()[-4000:].encode())
    finally:
        os._exit(status)


class Worker:
    """The server, as a test has it."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.files_worker"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def do(self, operation: str, state: Path, store: Path, **details: Any) -> Outcome:
        """Fails where the operation ended in another way than by a fault or a kill."""
        order = Order(operation=operation, state=str(state), store=f"file://{store}", **details)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(vars(order)) + "\n")
        self._process.stdin.flush()
        outcome = Outcome(**json.loads(self._process.stdout.readline()))
        assert outcome.status in (0, KILLED), outcome.error
        return outcome


if __name__ == "__main__":
    _serve()

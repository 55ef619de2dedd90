"""Keeps one run's files again and again, killed before another effect on the disk each time.

`python -m tests.fakes.finishing_worker ROOT RUN STEP`: `ROOT/before` holds a state directory `s`
and a store `store`; each time they are copied to `ROOT`, a child keeps the run and is killed before
its Nth effect, and another one keeps it again. Prints a JSON line a time: where it was killed, and
what came of the second try.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from executord.core.run import Workspace
from executord.files.store.store import Store
from tests.fakes.files import ended_run, ignore_progress, project_files

_EFFECTS = {
    "os.rename",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.symlink",
    "os.rmdir",
    "os.truncate",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killer:
    """Counts what is done to the disk, and ends the process right before number `at`."""

    def __init__(self, at: int) -> None:
        self.seen = 0
        self._at = at

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 else 0
            if not isinstance(flags, int) or not flags & _WRITING:
                return
        elif event not in _EFFECTS:
            return
        self.seen += 1
        if self.seen == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


async def keep(root: Path, run_id: str, kill_at: int) -> dict[str, object]:
    store = Store.open(f"file://{root}/store", {})
    files = project_files(root / "s", store)
    await files.open()
    lease = files._parts.workspaces.lease(run_id)
    assert lease is not None
    workspace = Workspace(
        volume=lease.volume, tree=lease.tree, base_revision=lease.base_revision, way=lease.way
    )
    killer = Killer(kill_at)
    sys.addaudithook(killer)
    kept = await files.keep(ended_run(run_id, workspace), ignore_progress)
    effects = killer.seen
    await files.close()
    line, head = [], store.head("alice/churn")
    while head:
        line.append(head)
        head = store.revision(head).parent
    return {"effects": effects, "line": line, **asdict(kept.result)}


def in_a_child(root: Path, run_id: str, kill_at: int) -> dict[str, object] | None:
    """None where it was killed."""
    answer = root / "answer"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        answer.write_text(json.dumps(asyncio.run(keep(root, run_id, kill_at))))
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
        return None
    result: dict[str, object] = json.loads(answer.read_text())
    return result


def restore(root: Path) -> None:
    for name in ("s", "store"):
        shutil.rmtree(root / name, ignore_errors=True)
        subprocess.run(["cp", "-a", str(root / "before" / name), str(root)], check=True)


def main(root: Path, run_id: str, step: int) -> None:
    kill_at = 0
    while True:
        restore(root)
        first = in_a_child(root, run_id, kill_at)
        if first is not None and kill_at:
            return  # it was over before there were so many
        again = in_a_child(root, run_id, 0)
        sys.stderr.write(json.dumps({"kill_at": kill_at, "again": again, "first": first}) + "\n")
        kill_at += step if kill_at else 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

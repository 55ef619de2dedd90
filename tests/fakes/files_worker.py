"""Prepares or keeps one run in a process of its own, which kills itself at its Nth effect.

`python -m tests.fakes.files_worker prepare|keep STATE STORE REVISION KILL_AT`; prints, as JSON,
the result's revision and head, and how many effects there were.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from executord.files.store.store import Store
from tests.fakes.files import ended_run, ignore_progress, opened

_EFFECTS = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.symlink", "os.rmdir", "os.chown"}
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


async def main(way: str, state: Path, store_url: str, revision: str, killer: Killer) -> None:
    async with opened(state, Store.open(store_url, {})) as files:
        if way == "prepare":
            sys.addaudithook(killer)
            await files.prepare("r-1", revision, ignore_progress)
            result = {"revision": revision, "head": ""}
        else:
            workspace = (await files.prepare("r-2", revision, ignore_progress)).workspace
            sys.addaudithook(killer)
            kept = await files.keep(ended_run("r-1", workspace), ignore_progress)
            result = {"revision": kept.result.revision, "head": kept.result.head}
        print(json.dumps({**result, "effects": killer.seen}))


if __name__ == "__main__":
    _, chosen, state_text, url, wanted, kill_at = sys.argv
    asyncio.run(main(chosen, Path(state_text), url, wanted, Killer(int(kill_at))))

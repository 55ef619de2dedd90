"""A small project, a cache that an earlier daemon has filled with it, and ways to spoil that."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from executord.files.client.push import Pushed
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import VerifyReport
from tests.fakes.files import (
    ignore_progress,
    opened,
    project_files,
    write_files,
)
from tests.fakes.files_worker import ALWAYS_LAYERS

FILES = {"a.txt": "aaaa", "twin.txt": "aaaa", "b/c.txt": "cccc", "b/run.sh": "#!sh", "empty/": ""}


def make_project(root: Path) -> Path:
    """With a link and an executable."""
    write_files(root, FILES)
    (root / "b/run.sh").chmod(0o755)
    (root / "link").symlink_to("b/c.txt")
    return root


def snapshot_home(state: Path, tree: str) -> Path:
    return state / "snapshots-v1" / tree.removeprefix("sha256:")


def flip(path: Path, at: int = 0) -> None:
    """One bit, and nothing that stat shows."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def prepare(files: ProjectFiles, revision: str, run_id: str = "r-1") -> str:
    return (await files.prepare(run_id, revision, ignore_progress)).cost.way


async def verify(files: ProjectFiles, *, repair: bool = False) -> VerifyReport:
    report: VerifyReport | None = None
    async for step in files.verify(repair=repair):
        if isinstance(step, VerifyReport):
            report = step
    assert report is not None
    return report


async def until(happened: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 20
    while not await happened():
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.02)


async def seasoned(tmp_path: Path, store: Store, pushed: Pushed) -> Path:
    """A cache that an earlier daemon has filled; gives the snapshot's root."""
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, pushed.revision)
        await files.discard("r-1", keep_workspace=False)
    return snapshot_home(tmp_path / "s", pushed.tree) / "root"


@asynccontextmanager
async def layering(state: Path, store: Store) -> AsyncIterator[ProjectFiles]:
    """Makes layers of trees however small."""
    files = project_files(state, store)
    builds = files._parts.builds
    builds._tools = replace(builds._tools, prices=ALWAYS_LAYERS)
    await files.open()
    try:
        yield files
    finally:
        await files.close()

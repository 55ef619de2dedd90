"""What a file costs, over a thousand to a million of them: time, and memory at the peak.

Each size is pushed, prepared cold and warm, and finished with ten files changed, in a process of
its own without an engine; the peak of each step's memory is above what the process had before.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from executord.core.run import Assignment, Environment, Evidence, Run
from executord.core.states import State
from executord.files.project_files import ProjectFiles
from executord.ports import Prepared
from tests.bench import caches, projects
from tests.bench.table import Row

_Done = TypeVar("_Done")

FILE_BYTES = 1024
CHANGED = 10
_MIB = 1 << 20
_AIMS_MIB = {100_000: 100.0, 1_000_000: 200.0}
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_QUICK_SIZES = (1_000, 4_000)


def run(*, quick: bool) -> list[Row]:
    rows: list[Row] = []
    for files in _QUICK_SIZES if quick else _SIZES:
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as root:
            projects.many_files(Path(root) / "project", files, size=lambda _: FILE_BYTES)
            steps = json.loads(_in_a_process_of_its_own("--push", root)) | json.loads(
                _in_a_process_of_its_own("--cache", root)
            )
        rows += [_row(step, files, *steps[step]) for step in steps]
    return rows


def _in_a_process_of_its_own(*words: str) -> bytes:
    command = [sys.executable, "-m", "tests.bench.curve", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def _row(step: str, files: int, seconds: float, peak_bytes: int) -> Row:
    peak = peak_bytes / _MIB
    limit = _AIMS_MIB.get(files)
    return Row(
        name=f"{step}, {files:,} files: {seconds * 1e6 / files:,.3g} µs a file, {peak:,.0f} MiB",
        figure=seconds * 1000,
        unit="ms",
        aim="" if limit is None else f"at most {limit:g} MiB more",
        met=None if limit is None else peak <= limit,
    )


# -- in a process of its own -----------------------------------------------------------------------


class _Peak:
    """The most memory that was resident since it was made, above what there was then."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
        self._before = psutil.Process().memory_info().rss

    def bytes(self) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 - self._before
        raise RuntimeError("the kernel tells no VmHWM")


class _NoEngine:
    """Volumes that nobody mounts."""

    async def create_overlay_volume(self, name: str, **_: object) -> None: ...
    async def create_bind_volume(self, name: str, **_: object) -> None: ...
    async def create_read_only_volume(self, name: str, **_: object) -> None: ...
    async def remove_volume(self, name: str) -> None: ...


Steps = dict[str, tuple[float, int]]


def _push(root: Path) -> Steps:
    store = caches.new_store(root / "store")
    peak = _Peak()
    began = time.perf_counter()
    pushed = caches.push(store, root / "project")
    steps = {"first push": (time.perf_counter() - began, peak.bytes())}
    (root / "revision").write_text(pushed.revision)
    return steps


async def _cache(root: Path) -> Steps:
    store_url = f"file://{root}/store"
    revision = (root / "revision").read_text()
    files = ProjectFiles(
        state_dir=root / "state",
        instance="0123abcd",
        store_url=store_url,
        store_options={},
        volumes=_NoEngine(),
        user=(1000, 1000),
        max_size_bytes=1 << 42,
        low_watermark=0.8,
        high_watermark=0.9,
        min_free_bytes=0,
    )
    await files.open()
    steps: Steps = {}
    try:

        async def step(name: str, work: Callable[[], Awaitable[_Done]]) -> _Done:
            peak = _Peak()
            began = time.perf_counter()
            done = await work()
            steps[name] = (time.perf_counter() - began, peak.bytes())
            return done

        def prepare(run_id: str) -> Callable[[], Awaitable[Prepared]]:
            return lambda: files.prepare(run_id, revision, caches.ignore)

        await step("cold Preparing", prepare("cold"))
        prepared = await step("warm Preparing", prepare("warm"))
        await asyncio.to_thread(_edit, root / "state" / "runs" / "warm" / "upper")
        run = _ended("warm", prepared, revision)
        await step(f"Finishing, {CHANGED} changed", lambda: files.keep(run, caches.ignore))
    finally:
        await files.close()
    return steps


def _edit(upper: Path) -> None:
    """As the overlay would have copied them up."""
    folder = upper / "part0" / "d0"
    folder.mkdir(parents=True)
    for number in range(CHANGED):
        (folder / f"f{number}").write_text(f"changed {number}")


def _ended(run_id: str, prepared: Prepared, revision: str) -> Run:
    assignment = Assignment(
        id=run_id,
        project="bench",
        command=("true",),
        environment=Environment(image="i"),
        tier="small",
        revision=revision,
    )
    return Run(
        assignment=assignment,
        state=State.FINISHING,
        accepted_at=1.0,
        state_since=2.0,
        workspace=prepared.workspace,
        evidence=Evidence(exit_code=0, finished_at=2.0),
    )


def main(words: Sequence[str]) -> None:
    what, root = words
    steps: Mapping[str, Any] = (
        _push(Path(root)) if what == "--push" else asyncio.run(_cache(Path(root)))
    )
    print(json.dumps(steps))


if __name__ == "__main__":
    main(sys.argv[1:])

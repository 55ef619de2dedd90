"""Finishing of a run on a project of 100,000 files, beside a copy of the whole working directory.

Ours is all of `keep` but the time in the store's own calls (file://, on the same disk), which is
told apart. `rsync -a --delete` brings a copy of the directory up to date after the same changes; it
has to look at every file. Each turn has a fresh workspace, respectively ten other changed files.
"""

import asyncio
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from executord.files.store.store import Store
from tests.bench import caches, projects
from tests.bench.table import Row
from tests.fakes.files import ended_run

_NOTHING_MS, _TEN_MS = 3.0, 10.0
_T = TypeVar("_T")


class TimedStore(Store):
    """Adds up what its calls for Finishing take."""

    seconds: float

    def absent_blobs(self, *words: Any) -> Any:
        return self._timed(lambda: super(TimedStore, self).absent_blobs(*words))

    def put_blobs(self, *words: Any, **more: Any) -> None:
        self._timed(lambda: super(TimedStore, self).put_blobs(*words, **more))

    def put_trees(self, *words: Any, **more: Any) -> None:
        self._timed(lambda: super(TimedStore, self).put_trees(*words, **more))

    def put_revision(self, *words: Any, **more: Any) -> None:
        self._timed(lambda: super(TimedStore, self).put_revision(*words, **more))

    def set_run_revision(self, *words: Any) -> None:
        self._timed(lambda: super(TimedStore, self).set_run_revision(*words))

    def head(self, *words: Any) -> str:
        return self._timed(lambda: super(TimedStore, self).head(*words))

    def move_head(self, *words: Any) -> bool:
        return self._timed(lambda: super(TimedStore, self).move_head(*words))

    def _timed(self, call: Callable[[], _T]) -> _T:
        began = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds += time.perf_counter() - began


def run(*, quick: bool) -> list[Row]:
    return asyncio.run(_measure(quick=quick, rounds=3 if quick else 9))


async def _measure(*, quick: bool, rounds: int) -> list[Row]:
    figures: dict[str, list[float]] = {
        "nothing": [],
        "ten": [],
        "upload": [],
        "none": [],
        "rsync": [],
    }
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        root = Path(text)
        project = await asyncio.to_thread(projects.make_m, root / "project", quick=quick)
        store = caches.new_store(root / "store")
        pushed = await asyncio.to_thread(caches.push, store, project)
        await asyncio.to_thread(_rsync, project, root / "copy")
        places = await asyncio.to_thread(_directories, project)
        async with caches.file_cache(root / "state", store) as (cache, _):
            timed = cache._parts.store
            timed.__class__ = TimedStore
            assert isinstance(timed, TimedStore)
            for number in range(rounds + 1):
                for changed, kind in ((0, "nothing"), (10, "ten")):
                    run_id = f"{kind}-{number}"
                    prepared = await cache.prepare(run_id, pushed.revision, caches.ignore)
                    names = _some_files(project, places, number, changed)
                    _change(root / "state/runs" / run_id / "upper", names, number)
                    ended = ended_run(run_id, prepared.workspace, project=f"bench/{run_id}")
                    store.move_head(ended.assignment.project, "", pushed.revision)
                    timed.seconds = 0.0
                    began = time.perf_counter()
                    kept = await cache.keep(ended, caches.ignore)
                    spent = (time.perf_counter() - began - timed.seconds) * 1000
                    assert kept.result.head == ("moved" if changed else "unchanged")
                    await cache.discard(run_id, keep_workspace=False)
                    if number:  # the first of each warms up
                        figures[kind].append(spent)
                        if changed:
                            figures["upload"].append(timed.seconds * 1000)
                if number and number <= (2 if quick else 4):
                    figures["none"].append(_rsync(project, root / "copy"))
                    _change(project, _some_files(project, places, number, 10), number + 1000)
                    figures["rsync"].append(_rsync(project, root / "copy"))
    medians = {key: statistics.median(values) for key, values in figures.items()}
    return [
        _row("Finishing, M, nothing changed", medians["nothing"], medians["none"], _NOTHING_MS),
        _row("Finishing, M, 10 files changed", medians["ten"], medians["rsync"], _TEN_MS),
        Row(
            name="Finishing, M, 10 files changed: the upload to file://",
            figure=medians["upload"],
            unit="ms",
        ),
    ]


def _row(name: str, ours: float, peer: float, aim: float) -> Row:
    return Row(
        name=name,
        figure=ours,
        unit="ms",
        peer="rsync -a --delete",
        peer_figure=peer,
        ratio=ours / peer,
        aim=f"at most {aim:g} ms",
        met=ours <= aim,
    )


def _directories(project: Path) -> list[Path]:
    """Those that hold files."""
    return sorted({path.parent for path in project.rglob("*") if path.is_file()})


def _some_files(project: Path, directories: list[Path], number: int, count: int) -> list[Path]:
    """Each turn's own, spread over the directories."""
    found = []
    for n in range(count):
        directory = directories[(number * 7 + n * len(directories) // 10) % len(directories)]
        files = sorted(path for path in directory.iterdir() if path.is_file())
        found.append(files[(number + n) % len(files)].relative_to(project))
    return found


def _change(target: Path, names: list[Path], number: int) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(f"{name} {number}\n".encode() * 400)


def _rsync(source: Path, target: Path) -> float:
    program = shutil.which("rsync")
    assert program is not None, "rsync is not installed: tests/setup/apt.py installs it"
    began = time.perf_counter()
    subprocess.run([program, "-a", "--delete", f"{source}/", str(target)], check=True)
    return (time.perf_counter() - began) * 1000

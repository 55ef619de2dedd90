"""What making files ready ahead is worth, and what it costs those who run meanwhile.

The first rows: Preparing of a revision that was made ready ahead, beside Preparing of one that was
not. The others: a reader of files that are not in the page cache, alone and while a revision is
being made ready ahead and by a run: work ahead has to be felt less than a run's.
"""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from executord.files.client.push import Pushed, push_directory
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from tests.bench.table import Row
from tests.fakes.files import ignore_progress, opened

FILE_BYTES = 4096
READ_BYTES = 1 << 20
READS = 96


def run(*, quick: bool) -> list[Row]:
    files, rounds = (500, 3) if quick else (10_000, 5)
    return asyncio.run(_measure(files, rounds))


async def _measure(files: int, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        root = Path(text)
        store = Store.open(f"file://{_made(root / 'store')}", {})
        cold: list[float] = []
        ready: list[float] = []
        slowed: dict[str, list[float]] = {"alone": [], "ahead": [], "run": []}
        big = await asyncio.to_thread(_big_file, root / "big")
        async with opened(root / "state", store) as cache:
            for number in range(rounds):
                one, two, three = [
                    await asyncio.to_thread(_pushed, store, root, f"{number}-{kind}", files)
                    for kind in "abc"
                ]
                slowed["alone"].append(await _reading_beside(big, None))
                run = partial(_prepare, cache, f"r{number}", one)
                ahead = partial(_ahead, cache, f"a{number}", two)
                slowed["run"].append(await _reading_beside(big, run))
                slowed["ahead"].append(await _reading_beside(big, ahead))
                ready.append(await _prepare(cache, f"s{number}", two))
                cold.append(await _prepare(cache, f"c{number}", three))
    return _rows(files, cold, ready, slowed)


def _rows(
    files: int, cold: list[float], ready: list[float], slowed: dict[str, list[float]]
) -> list[Row]:
    middle = {name: statistics.median(values) for name, values in slowed.items()}
    rows = [
        Row(
            name=f"Preparing, {files:,} files made ready ahead",
            figure=statistics.median(ready),
            unit="ms",
            peer="not made ready",
            peer_figure=statistics.median(cold),
            ratio=statistics.median(ready) / statistics.median(cold),
            aim="under 5 ms",
            met=statistics.median(ready) < 5,
        )
    ]
    for name, what in (("run", "a run's files are fetched"), ("ahead", "files are fetched ahead")):
        rows.append(
            Row(
                name=f"reading {READS} MiB uncached while {what}",
                figure=middle[name],
                unit="ms",
                peer="alone",
                peer_figure=middle["alone"],
                ratio=middle[name] / middle["alone"],
            )
        )
    return rows


async def _prepare(cache: ProjectFiles, run_id: str, pushed: Pushed) -> float:
    began = time.perf_counter()
    await cache.prepare(run_id, pushed.revision, ignore_progress)
    return (time.perf_counter() - began) * 1000


async def _ahead(cache: ProjectFiles, holder: str, pushed: Pushed) -> float:
    began = time.perf_counter()
    await cache.ready_ahead(pushed.revision, holder, ignore_progress)
    return (time.perf_counter() - began) * 1000


async def _reading_beside(big: Path, work: Callable[[], Awaitable[float]] | None) -> float:
    beside = asyncio.ensure_future(work()) if work is not None else None
    taken = await asyncio.to_thread(_read, big)
    if beside is not None:
        await beside
    return taken


def _read(big: Path) -> float:
    """Milliseconds; the file's pages are dropped first."""
    fd = os.open(big, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        for number in range(READS):
            os.pread(fd, READ_BYTES, number * READ_BYTES)
        return (time.perf_counter() - began) * 1000
    finally:
        os.close(fd)


def _big_file(path: Path) -> Path:
    with path.open("wb") as file:
        for _ in range(READS):
            file.write(os.urandom(READ_BYTES))
        file.flush()
        os.fsync(file.fileno())
    return path


def _pushed(store: Store, root: Path, name: str, files: int) -> Pushed:
    project = root / name
    for number in range(files):
        folder = project / f"d{number // 50}"
        if number % 50 == 0:
            folder.mkdir(parents=True)
        (folder / f"f{number}").write_bytes(os.urandom(FILE_BYTES))
    return push_directory(store, project, f"bench/{name}", author="b", cache_home=root / "hashes")


def _made(path: Path) -> Path:
    path.mkdir()
    return path

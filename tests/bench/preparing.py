"""Warm Preparing of a project, beside what else could put the same tree there.

Ours is all of `prepare`, the engine's volume too. `rsync -a` and a
hardlink farm (`cp -al`) make a fresh directory of the same tree on the same filesystem; the three
take turns, and what a turn leaves is deleted before the next one, untimed.
"""

import asyncio
import os
import secrets
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from executord.engine.docker import DockerEngine
from executord.files.client.push import push_directory
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import Progress
from tests.bench.table import Row

FILE_BYTES = 4096
FILES_A_DIRECTORY = 50
AIM_MS = 20.0


def run(*, quick: bool) -> list[Row]:
    rows: list[Row] = []
    for files in (500, 2_000) if quick else (10_000, 100_000):
        rows += asyncio.run(_measure(files, rounds=3 if quick else 5))
    return rows


async def _measure(files: int, *, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        root = Path(text)
        project = await asyncio.to_thread(_make_project, root / "project", files)
        (root / "store").mkdir()
        store = Store.open(f"file://{root}/store", {})
        pushed = await asyncio.to_thread(
            push_directory, store, project, "bench", cache_home=root / "hashes"
        )
        async with _files(root / "state", store) as cache:
            began = time.perf_counter()
            await cache.prepare("cold", pushed.revision, _ignore)
            cold = (time.perf_counter() - began) * 1000
            taken: dict[str, list[float]] = {"ours": [], "rsync": [], "farm": []}
            for number in range(rounds):
                began = time.perf_counter()
                prepared = await cache.prepare(f"warm-{number}", pushed.revision, _ignore)
                taken["ours"].append((time.perf_counter() - began) * 1000)
                assert prepared.workspace.way == "snapshot"
                await cache.discard(f"warm-{number}", keep_workspace=False)
                for peer, command in _peers(project, root / "copy").items():
                    taken[peer].append(await asyncio.to_thread(_timed, command, root / "copy"))
            await cache.discard("cold", keep_workspace=False)
    return _rows(files, cold, taken)


def _rows(files: int, cold: float, taken: Mapping[str, Sequence[float]]) -> list[Row]:
    ours = statistics.median(taken["ours"])
    rows = [
        Row(
            name=f"warm Preparing, {files:,} files",
            figure=ours,
            unit="ms",
            peer=peer,
            peer_figure=statistics.median(taken[key]),
            ratio=ours / statistics.median(taken[key]),
            aim=f"under {AIM_MS:g} ms",
            met=ours < AIM_MS,
        )
        for key, peer in (("rsync", "rsync -a"), ("farm", "cp -al"))
        if taken[key]
    ]
    if taken["rsync"]:
        rsync = statistics.median(taken["rsync"])
        rows.append(
            Row(
                name=f"cold Preparing, {files:,} files, verified and durable",
                figure=cold,
                unit="ms",
                peer="rsync -a",
                peer_figure=rsync,
                ratio=cold / rsync,
            )
        )
    return rows


def _peers(project: Path, target: Path) -> dict[str, list[str]]:
    peers = {"farm": ["cp", "-al", str(project), str(target)]}
    if shutil.which("rsync"):
        peers["rsync"] = ["rsync", "-a", f"{project}/", f"{target}/"]
    return peers


def _timed(command: Sequence[str], target: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    taken = (time.perf_counter() - began) * 1000
    shutil.rmtree(target)
    return taken


def _make_project(project: Path, files: int) -> Path:
    for number in range(files):
        if number % FILES_A_DIRECTORY == 0:
            folder = project / f"part{number // 5000}" / f"d{number // FILES_A_DIRECTORY}"
            folder.mkdir(parents=True)
        (folder / f"f{number}").write_bytes(os.urandom(FILE_BYTES))
    return project


@asynccontextmanager
async def _files(state: Path, store: Store) -> AsyncIterator[ProjectFiles]:
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    engine = DockerEngine(url=url, deadline_seconds=30.0)
    await engine.open()
    files = ProjectFiles(
        state_dir=state,
        instance=secrets.token_hex(4),
        store_url=store.url,
        store_options={},
        volumes=engine,
        user=(1000, 1000),
        max_size_bytes=1 << 40,
        low_watermark=0.8,
        high_watermark=0.9,
        min_free_bytes=0,
    )
    await files.open()
    try:
        yield files
    finally:
        await files.close()
        await engine.close()


def _ignore(_: Progress) -> None:
    pass

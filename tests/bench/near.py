"""Preparing of a revision that is near to one that is here: what it costs us, without the engine,
beside what else could bring a directory to the same state.

The changed files' contents and trees are on the node already, as after a run that made them there.
`rsync -a` brings a copy of the earlier state up to date; `cp -al` makes a fresh farm of hardlinks.
All take turns on the same data and filesystem.
"""

import asyncio
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from executord.files.cache.nearest import Prices
from executord.files.cache.tree_build import TreeBuild
from executord.files.client.push import push_directory
from executord.files.progress import Counter
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from tests.bench.table import Row
from tests.fakes.files import ignore_progress, opened

FILES_A_DIRECTORY = 100
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Size:
    name: str
    files: int
    mean_bytes: int


S = Size("S", 10_000, 4096)
M = Size("M", 100_000, 8192)
QUICK = Size("quick", 2_000, 4096)
CHAIN = (1, 2, 4, 8)
_LAYERS_COST_NOTHING = Prices(small_tree=0, least=0, share=0.0, most_share=1.0)


def run(*, quick: bool) -> list[Row]:
    rows: list[Row] = []
    for size in (QUICK,) if quick else (S, M):
        rows += asyncio.run(_measure(size, rounds=2 if quick else ROUNDS))
    return rows


async def _measure(size: Size, *, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-near-") as text:
        root = Path(text)
        bench = Bench(root, size)
        await asyncio.to_thread(bench.make_project)
        async with bench.opened() as files:
            rows = [await bench.farm(files)]
            rows += await bench.same(files, rounds)
            for scattered, aim in ((False, 20.0), (True, 60.0)):
                rows += await bench.changed(files, rounds, scattered=scattered, aim_ms=aim)
            if os.geteuid() == 0:
                rows += await asyncio.to_thread(bench.chains, files)
        return rows


class Bench:
    def __init__(self, root: Path, size: Size) -> None:
        self.root = root
        self.size = size
        self.project = root / "project"
        self.store = root / "store"
        self.random = random.Random(1)
        self.revision = ""
        self.number = 0

    def make_project(self) -> None:
        for number in range(self.size.files):
            folder = self._folder(number // FILES_A_DIRECTORY)
            if number % FILES_A_DIRECTORY == 0:
                folder.mkdir(parents=True)
            self._write(folder / f"file-{number}.dat")
        self.store.mkdir()
        self.push()
        subprocess.run(["cp", "-a", str(self.project), str(self.root / "mirror")], check=True)

    def _folder(self, number: int) -> Path:
        return self.project / f"part-{number // 50}" / f"directory-{number}"

    def _write(self, path: Path) -> None:
        """A new file in the place of the old one, which others may share."""
        size = self.random.randint(1, 2 * self.size.mean_bytes)
        aside = path.with_name(".new")
        aside.write_bytes(os.urandom(size))
        aside.rename(path)

    def push(self) -> None:
        store = Store.open(f"file://{self.store}", {})
        pushed = push_directory(store, self.project, "bench", cache_home=self.root / "hashes")
        self.revision = pushed.revision

    def change(self, *, scattered: bool) -> None:
        """One file in a hundred: in ten directories, or in all of them."""
        count = self.size.files // 100
        folders = self.size.files // FILES_A_DIRECTORY
        where = folders if scattered else max(1, min(10, folders // 2))
        for number in range(count):
            folder = number % where
            file = folder * FILES_A_DIRECTORY + number // where
            self._write(self._folder(folder) / f"file-{file}.dat")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ProjectFiles]:
        store = Store.open(f"file://{self.store}", {})
        async with opened(self.root / "state", store) as files:
            yield files

    async def prepare(self, files: ProjectFiles, ways: set[str]) -> float:
        """Milliseconds."""
        self.number += 1
        began = time.perf_counter()
        prepared = await files.prepare(f"run-{self.number}", self.revision, ignore_progress)
        taken = (time.perf_counter() - began) * 1000
        assert prepared.cost.way in ways, prepared.cost
        await files.discard(f"run-{self.number}", keep_workspace=False)
        return taken

    async def farm(self, files: ProjectFiles) -> Row:
        """All of it from blobs that are here, as after an eviction of the snapshot."""
        await self.prepare(files, {"farm"})
        snapshots = files._parts.snapshots
        tree = (await files.read_revision(self.revision)).tree
        assert snapshots.throw_away(tree)
        ours = await self.prepare(files, {"farm"})
        peer = await asyncio.to_thread(self._timed, ["cp", "-al", "project", "farm"], "farm")
        return self._row("whole farm, blobs here", ours, "cp -al", peer)

    async def same(self, files: ProjectFiles, rounds: int) -> list[Row]:
        ours, peers = [], []
        for _ in range(rounds):
            ours.append(await self.prepare(files, {"snapshot"}))
            peers.append(
                await asyncio.to_thread(self._timed, ["cp", "-al", "project", "farm"], "farm")
            )
        return [self._row("same revision", _median(ours), "cp -al", _median(peers), aim_ms=5.0)]

    async def changed(
        self, files: ProjectFiles, rounds: int, *, scattered: bool, aim_ms: float
    ) -> list[Row]:
        ours, rsync, farm = [], [], []
        for _ in range(rounds):
            await asyncio.to_thread(self.change, scattered=scattered)
            await asyncio.to_thread(self.push)
            await asyncio.to_thread(_bring_here, files, self.revision)
            ours.append(await self.prepare(files, {"layer"}))
            rsync.append(
                await asyncio.to_thread(self._timed, ["rsync", "-a", "project/", "mirror/"])
            )
            farm.append(
                await asyncio.to_thread(self._timed, ["cp", "-al", "project", "farm"], "farm")
            )
        name = f"1 % changed, {'scattered' if scattered else 'clustered'}"
        mine = _median(ours)
        return [
            self._row(name, mine, peer, _median(theirs), aim_ms=aim_ms)
            for peer, theirs in (("rsync -a", rsync), ("cp -al", farm))
        ]

    def chains(self, files: ProjectFiles) -> list[Row]:
        """The first walk and stat through a fresh mount, by the number of layers."""
        snapshots, fetcher = files._parts.snapshots, files._parts.fetcher
        tools = replace(files._parts.builds._tools, prices=_LAYERS_COST_NOTHING)
        tree = fetcher.revision(self.revision).tree
        TreeBuild(tools, tree, ignore_progress, threading.Event()).run(whole=True)
        whole = statistics.median(self._first_walk([snapshots.lower(tree)]) for _ in range(3))
        rows = []
        for depth in range(1, CHAIN[-1] + 1):
            self.change(scattered=True)
            self.push()
            _bring_here(files, self.revision)
            base, tree = tree, fetcher.revision(self.revision).tree
            build = TreeBuild(tools, tree, ignore_progress, threading.Event(), [base])
            assert build.run().about.depth == depth
            if depth in CHAIN:
                lowers = snapshots.lowers(tree)
                taken = statistics.median(self._first_walk(lowers) for _ in range(3))
                rows.append(
                    self._row(f"first walk over {depth} layers", taken, "the snapshot", whole)
                )
        return rows

    def _first_walk(self, lowers: Sequence[Path]) -> float:
        merged, own = self.root / "merged", self.root / "own"
        for path in (merged, own / "upper", own / "work"):
            path.mkdir(parents=True)
        options = (
            f"userxattr,lowerdir={':'.join(map(str, lowers))},"
            f"upperdir={own}/upper,workdir={own}/work"
        )
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
        try:
            return self._timed(["find", str(merged), "-size", "+1G"])
        finally:
            subprocess.run(["umount", merged], check=True)
            shutil.rmtree(merged)
            shutil.rmtree(own)

    def _timed(self, command: Sequence[str], made: str = "") -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, cwd=self.root)
        taken = (time.perf_counter() - began) * 1000
        if made:
            shutil.rmtree(self.root / made)
        return taken

    def _row(
        self, name: str, ours: float, peer: str, theirs: float, aim_ms: float | None = None
    ) -> Row:
        return Row(
            name=f"Preparing {self.size.name} ({self.size.files:,} files): {name}",
            figure=ours,
            unit="ms",
            peer=peer,
            peer_figure=theirs,
            ratio=ours / theirs,
            aim="" if aim_ms is None else f"under {aim_ms:g} ms",
            met=None if aim_ms is None else ours < aim_ms,
        )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _bring_here(files: ProjectFiles, revision: str) -> None:
    """Trees and blobs, as a run that made them would have left them."""
    fetcher, blobs = files._parts.fetcher, files._parts.blobs
    closure = fetcher.closure(fetcher.revision(revision).tree, threading.Event())
    missing = [key for key in closure.blobs if not blobs.has(key)]
    fetcher.blobs(
        {key: closure.blobs[key] for key in missing}, Counter("", None), threading.Event()
    )

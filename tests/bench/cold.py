"""A cold node: nothing of a project is here, and its store is a directory.

Small files (M): all of Preparing, that is trees, blobs and the run's snapshot, checked and with
durable blobs; and the fetching alone. Beside them what else could bring the same files (`rsync -a`,
`git worktree add`), as they are, without any syncing, and with the filesystem synced after. Large
ones (L): beside `cp` of the same bytes plus one SHA-256 of them. All take turns; before each, as
much is written and deleted as it will write, untimed: on a virtual machine memory that was never
touched costs its host's page faults, and would be charged to whoever comes first.
"""

import asyncio
import hashlib
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from executord.files.cache.blobs import Blobs
from executord.files.cache.layout import Layout
from executord.files.cache.objects import Revisions, Trees
from executord.files.client.push import push_directory
from executord.files.progress import Counter
from executord.files.store.store import Store
from executord.files.store.transfer import Fetcher
from executord.files.system.disk import sync_filesystem
from tests.bench.push import MEAN_BYTES, make_project, timed
from tests.bench.table import Row
from tests.fakes.files import ignore_progress, project_files

_NEVER = threading.Event()
_PREPARING = "cold Preparing"
_FETCH = "cold fetch"


def run(*, quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        root = Path(text)
        small = _small(root / "m", 2_000 if quick else 100_000, rounds=1 if quick else 3)
        large = _large(root / "l", (64 if quick else 1024) << 20, rounds=1 if quick else 3)
        return [*small, *large]


def _small(root: Path, files: int, *, rounds: int) -> list[Row]:
    project = make_project(root / "project", files)
    tree = _stored(root, project)
    git = _repository(root, project)
    revision = Store.open(f"file://{root}/store", {}).head("bench")
    ours: dict[str, list[float]] = {_PREPARING: [], _FETCH: []}
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        _touch_memory(root, files * MEAN_BYTES)
        ours[_PREPARING].append(asyncio.run(_prepared(root, revision)))
        _touch_memory(root, files * MEAN_BYTES)
        ours[_FETCH].append(_fetched(root, tree))
        target = root / "copy"
        for peer, words in (
            ("rsync -a", ["rsync", "-a", f"{project}/", f"{target}/"]),
            ("git worktree add", ["git", *git, "worktree", "add", "-f", "--detach", str(target)]),
        ):
            _touch_memory(root, files * MEAN_BYTES)
            seconds = timed(partial(_call, words))
            taken.setdefault(peer, []).append(seconds)
            synced = seconds + timed(partial(sync_filesystem, root))
            taken.setdefault(f"{peer}, synced", []).append(synced)
            shutil.rmtree(target)
    return [
        _beside(f"{name} of {files:,} small files, checked and durable", mine, peer, theirs)
        for name, mine in ours.items()
        for peer, theirs in taken.items()
    ]


def _beside(name: str, ours: list[float], peer: str, theirs: list[float]) -> Row:
    figure, other = statistics.median(ours), statistics.median(theirs)
    return Row(
        name=name,
        figure=figure,
        unit="s",
        peer=peer,
        peer_figure=other,
        ratio=figure / other,
        aim=f"faster than {peer}",
        met=figure < other,
    )


def _large(root: Path, size: int, *, rounds: int) -> list[Row]:
    project = root / "project"
    project.mkdir(parents=True)
    block = os.urandom(1 << 20)
    for number in range(4):
        with (project / f"large{number}").open("wb") as file:
            for at in range(size >> 20):
                file.write(f"{number} {at} ".encode().ljust(64) + block[64:])
    tree = _stored(root, project)
    ours, peers = [], []
    for _ in range(rounds):
        _touch_memory(root, 4 * size)
        ours.append(_fetched(root, tree))
        _touch_memory(root, 4 * size)
        copying = timed(lambda: _call(["cp", "-r", str(project), str(root / "copy")]))
        peers.append(copying + timed(lambda: _hash_all(root / "copy")))
        shutil.rmtree(root / "copy")
    figure, peer = statistics.median(ours), statistics.median(peers)
    return [
        Row(
            name=f"cold fetch of 4 files of {size >> 20} MiB, checked and durable",
            figure=figure,
            unit="s",
            peer="cp + SHA-256",
            peer_figure=peer,
            ratio=figure / peer,
            aim="at least 80 % of its speed",
            met=figure <= peer / 0.8,
        )
    ]


def _stored(root: Path, project: Path) -> str:
    store = Store.open(f"file://{root}/store", {}, create=True)
    return push_directory(store, project, "bench", cache_home=root / "hashes").tree


async def _prepared(root: Path, revision: str) -> float:
    """Seconds from an empty cache to a workspace that a container could start in."""
    files = project_files(root / "state", f"file://{root}/store", user=(1000, 1000))
    await files.open()
    os.sync()
    began = time.perf_counter()
    await files.prepare("cold", revision, ignore_progress)
    seconds = time.perf_counter() - began
    await files.close()
    shutil.rmtree(root / "state")
    return seconds


def _fetched(root: Path, tree: str) -> float:
    """Seconds from an empty cache to all trees and blobs of it, durable."""
    state = root / "state"
    layout = Layout(state)
    layout.make()
    blobs = Blobs(layout, (1000, 1000))
    blobs.load()
    fetcher = Fetcher(
        store=Store.open(f"file://{root}/store", {}, packs_home=state / "packs-v1"),
        blobs=blobs,
        trees=Trees(layout.trees),
        revisions=Revisions(layout.revisions),
    )
    os.sync()

    def fetch() -> None:
        closure = fetcher.closure(tree, _NEVER)
        fetcher.blobs(closure.blobs, Counter("bench", None), _NEVER)

    seconds = timed(fetch)
    fetcher.close()
    shutil.rmtree(state)
    return seconds


def _touch_memory(root: Path, size: int) -> None:
    block = bytes(range(256)) * 4096
    path = root / "scratch"
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(block)):
            file.write(block)
    path.unlink()
    os.sync()


def _repository(root: Path, project: Path) -> list[str]:
    git = [f"--git-dir={root}/git", f"--work-tree={project}"]
    name = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "all"]):
        _call(["git", *git, *name, *words])
    return [f"--git-dir={root}/git"]


def _hash_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")


def _call(words: list[str]) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

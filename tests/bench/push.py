"""A client's push of many small files, beside git, and beside only looking at them.

First with nothing known; then again after 1 % of the files changed, beside a walk that does nothing
but `stat` each file. git adds and commits the same files; neither syncs (git as it is by default),
ours is durable.
"""

import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from executord.files.client.push import push_directory
from executord.files.store.store import Store
from tests.bench.table import Row

MEAN_BYTES = 8192
FILES_A_DIRECTORY = 50
MEMORY_AIM_MIB = 100
SETTLE_SECONDS = 2.2


def run(*, quick: bool) -> list[Row]:
    files = 2_000 if quick else 100_000
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        return _measure(Path(text), files, rounds=1 if quick else 3)


def _measure(root: Path, files: int, *, rounds: int) -> list[Row]:
    project = make_project(root / "project", files)
    time.sleep(SETTLE_SECONDS)
    taken: dict[str, list[float]] = {"ours": [], "git": []}
    memory: list[float] = []
    for _ in range(rounds):
        for path in (root / "store", root / "hashes", root / "git"):
            shutil.rmtree(path, ignore_errors=True)
        os.sync()
        mib, seconds = _push_in_a_process(root)
        memory.append(mib)
        taken["ours"].append(seconds)
        os.sync()
        taken["git"].append(timed(lambda: _git(project, root / "git")))
    first = statistics.median(taken["ours"])
    git = statistics.median(taken["git"])
    rows = [
        Row(
            name=f"push of {files:,} files, first",
            figure=first,
            unit="s",
            peer="git add + commit",
            peer_figure=git,
            ratio=first / git,
            aim="under 1 x git",
            met=first < git,
        ),
        Row(
            name=f"its memory, {files:,} files",
            figure=statistics.median(memory),
            unit="MiB",
            aim=f"at most {MEMORY_AIM_MIB} MiB more",
            met=statistics.median(memory) <= MEMORY_AIM_MIB,
        ),
    ]
    for name, scattered in (("clustered", False), ("scattered", True)):
        rows.append(_changed(root, project, files, name, scattered=scattered))
    return rows


def _changed(root: Path, project: Path, files: int, name: str, *, scattered: bool) -> Row:
    ours, walks = [], []
    store = Store.open(f"file://{root}/store", {}, packs_home=root / "hashes/packs-v1")
    for _ in range(3):
        change(project, files // 100, scattered=scattered)
        time.sleep(SETTLE_SECONDS)
        os.sync()
        walks.append(timed(lambda: stat_walk(str(project))))
        ours.append(
            timed(lambda: push_directory(store, project, "bench", cache_home=root / "hashes"))
        )
        time.sleep(SETTLE_SECONDS)
    figure, walk = statistics.median(ours), statistics.median(walks)
    return Row(
        name=f"push with 1 % of {files:,} files changed, {name}",
        figure=figure,
        unit="s",
        peer="a stat walk",
        peer_figure=walk,
        ratio=figure / walk,
        aim="at most 2 x a stat walk",
        met=figure <= 2 * walk,
    )


def make_project(project: Path, files: int) -> Path:
    """Files of a mean of 8 KiB, 50 a directory."""
    sizes = random.Random(1)
    for number in range(files):
        if number % FILES_A_DIRECTORY == 0:
            folder = project / f"part{number // 5000}" / f"d{number // FILES_A_DIRECTORY}"
            folder.mkdir(parents=True)
        size = sizes.randrange(MEAN_BYTES // 2, MEAN_BYTES * 3 // 2)
        (folder / f"f{number}").write_bytes(os.urandom(size))
    return project


def change(project: Path, count: int, *, scattered: bool) -> None:
    """Other content into so many files, of neighbours or of all over the tree."""
    paths = sorted(path for path in project.rglob("f*"))
    start = random.randrange(len(paths) - count)
    chosen = random.sample(paths, count) if scattered else paths[start : start + count]
    for path in chosen:
        path.write_bytes(os.urandom(path.stat().st_size))


def stat_walk(root: str) -> int:
    """What any client has to do that looks whether something has changed."""
    seen = 0
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                seen += 1
    return seen


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _git(project: Path, git: Path) -> None:
    git.mkdir()
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_CONFIG_GLOBAL": os.devnull}
    names |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    environment = {**os.environ, **names, "GIT_DIR": str(git), "GIT_WORK_TREE": str(project)}
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", "-c", "gc.auto=0", *words], check=True, env=environment, cwd=project)


def _push_in_a_process(root: Path) -> tuple[float, float]:
    """MiB more than before the push at its peak, and its seconds, without those of the start."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.push", str(root)],
        check=True,
        capture_output=True,
        text=True,
    )
    mib, seconds = done.stdout.split()
    return float(mib), float(seconds)


def _push(root: Path) -> None:
    url = f"file://{root}/store"
    store = Store.open(url, {}, create=True, packs_home=root / "hashes/packs-v1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = timed(
        lambda: push_directory(store, root / "project", "bench", cache_home=root / "hashes")
    )
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(more / 1024, seconds)


if __name__ == "__main__":
    _push(Path(sys.argv[1]))

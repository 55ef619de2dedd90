"""Thousands of bits flipped in whatever the cache keeps, with restarts between: no run gets a wrong
byte, a wrong name, or a file too many or too few.

`EXECUTORD_FLIPS` sets how many bits are flipped.
"""

import os
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from tests.fakes import files_mutants
from tests.fakes.files import contents, ignore_progress, new_store, project_files, push, write_files
from tests.fakes.files_worker import ALWAYS_LAYERS
from tests.fakes.merged import shown

FLIPS = int(os.environ.get("EXECUTORD_FLIPS", "10000"))
MOST_A_ROUND = 400
NAMES = 0.03  # how many of the flips in snapshots and layers hit a name

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Scene:
    """Three revisions, each a little different, and what a run on each has to see."""

    state: Path
    store: Store
    truths: dict[str, dict[str, str]]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    dice = random.Random(2041)
    store = new_store(tmp_path / "store")
    project = write_files(
        tmp_path / "project",
        {f"d{n % 5}/f{n}": dice.randbytes(dice.choice((0, 1, 30, 400, 5000))) for n in range(40)},
    )
    (project / "link").symlink_to("d1/f1")
    (project / "d0/f0").chmod(0o755)
    for copy in range(4):
        shutil.copy(project / "d1/f6", project / f"copy{copy}")
    truths = {}
    for round_ in range(3):
        if round_:
            write_files(project, {f"d{round_}/new{n}": dice.randbytes(300) for n in range(4)})
            shutil.copy(project / "d1/f6", project / f"d{round_}/again")
            (project / f"d{round_}/f{round_ + 10}").unlink()
            (project / f"d{round_ + 2}/f{round_ + 2}").write_text(f"changed {round_}")
        pushed = push(store, project)
        truths[pushed.revision] = contents(project)
    return Scene(tmp_path / "s", store, truths)


@asynccontextmanager
async def started(scene: Scene, mutant: str = "") -> AsyncIterator[ProjectFiles]:
    files = project_files(scene.state, scene.store)
    builds = files._parts.builds
    builds._tools = replace(builds._tools, prices=ALWAYS_LAYERS)
    if mutant:
        files_mutants.plant(mutant, files)
    await files.open()
    try:
        yield files
    finally:
        await files.close()


async def wrong_trees(scene: Scene, files: ProjectFiles) -> list[str]:
    """Revisions of which a run would see anything but the truth."""
    wrong = []
    for revision, truth in scene.truths.items():
        prepared = await files.prepare("r-1", revision, ignore_progress)
        lowers = files._parts.snapshots.lowers(prepared.workspace.tree)
        if shown(lowers) != truth:
            wrong.append(revision)
        await files.discard("r-1", keep_workspace=False)
    return wrong


def flip_some(state: Path, dice: random.Random, number: int) -> None:
    """Anywhere in the cache: blobs, copies, trees, revisions, records, names."""
    paths = sorted(path for path in state.rglob("*") if path.is_file() and not path.is_symlink())
    spare = {"quarantine", "trash", "tmp"}
    paths = [path for path in paths if path.relative_to(state).parts[0] not in spare]
    assert {"blobs-v1", "trees-v1", "snapshots-v1", "layers-v1"} <= {
        path.relative_to(state).parts[0] for path in paths
    }
    for _ in range(number):
        path = dice.choice(paths)
        if "root" in path.parts and dice.random() < NAMES and path.exists():
            flip_name(path, dice)
        elif path.exists():
            flip(path, dice)


def flip_name(path: Path, dice: random.Random) -> None:
    name = bytearray(os.fsencode(path.name))
    name[dice.randrange(len(name))] ^= 1 << dice.randrange(8)
    text = os.fsdecode(bytes(name))
    if text not in (".", "..") and not {"/", "\0"} & set(text):
        path.rename(path.with_name(text))


def flip(path: Path, dice: random.Random) -> None:
    facts = path.stat()
    if not facts.st_size:
        return
    at = dice.randrange(facts.st_size)
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, at)[0] ^ (1 << dice.randrange(8))
        os.pwrite(fd, bytes([byte]), at)
    finally:
        os.close(fd)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


async def flip_and_look(scene: Scene, flips: int, **started_with: Any) -> dict[str, int]:
    dice = random.Random(77)
    async with started(scene) as files:
        assert await wrong_trees(scene, files) == []
        grounds = files._parts.snapshots.grounds()
        assert sorted(ground.kind for ground in grounds) == ["layer", "layer", "snapshot"]
    counts = {"flipped": 0, "rounds": 0, "damaged": 0, "wrong": 0}
    while counts["flipped"] < flips:
        number = min(dice.choice((1, 10, 50, MOST_A_ROUND)), flips - counts["flipped"])
        flip_some(scene.state, dice, number)
        async with started(scene, **started_with) as files:
            counts["wrong"] += len(await wrong_trees(scene, files))
            counts["damaged"] += (await files.stats()).damaged
            await files._parts.builds.flattener.close()
        counts["flipped"] += number
        counts["rounds"] += 1
    return counts


async def test_no_run_gets_a_wrong_byte_whatever_bits_are_flipped(scene: Scene) -> None:
    counts = await flip_and_look(scene, FLIPS)
    assert counts["flipped"] == FLIPS
    assert counts["wrong"] == 0, counts
    assert counts["damaged"] > counts["rounds"], counts
    print(counts)


async def test_the_suite_notices_a_daemon_that_does_not_check(scene: Scene) -> None:
    counts = await flip_and_look(scene, 200, mutant="no check at first use")
    assert counts["wrong"] > 0

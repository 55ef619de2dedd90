"""One suite for every way of making a run's directory: made, changed, read, the same comes back.

The scripts are carried out by another user than the daemon's, in the directory as the engine would
mount it; `tests/engine/test_workspace_modes.py` does the same in containers.
"""

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from executord.files.client.pull import pull_revision
from executord.files.client.push import Pushed
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import Kept, Prepared, WorkspaceMode
from tests.fakes.files import (
    FakeVolumes,
    ended_run,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)
from tests.fakes.workspace_edits import EDITS, WRITABLE, Edit, described, make_project
from tests.harness.file_systems import file_system, overlay

USER = 1000
MODES: tuple[WorkspaceMode, ...] = ("overlay", "reflink", "hardlink", "copy")


@dataclass
class Node:
    """One way of making directories, and what it is tried on."""

    mode: WorkspaceMode
    root: Path
    store: Store
    volumes: FakeVolumes
    files: ProjectFiles

    async def prepare(self, run_id: str, revision: str) -> Prepared:
        return await self.files.prepare(run_id, revision, ignore_progress)

    @contextmanager
    def mounted(self, prepared: Prepared) -> Iterator[Path]:
        """The directory as a container sees it."""
        volume = self.volumes.volumes[prepared.workspace.volume]
        if "directory" in volume:
            yield volume["directory"]
            return
        target = self.root / "merged"
        with overlay(
            target, lower=volume["lower"], upper=volume["upper"], work=volume["work"]
        ) as top:
            yield top

    def execute(self, prepared: Prepared, script: str) -> None:
        with self.mounted(prepared) as top:
            done = subprocess.run(
                ["/bin/sh", "-ec", script],
                cwd=top,
                user=USER,
                group=USER,
                extra_groups=[],
                env={"PATH": os.defpath},
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr

    async def keep(self, run_id: str, prepared: Prepared) -> Kept:
        return await self.files.keep(ended_run(run_id, prepared.workspace), ignore_progress)

    def pulled(self, revision: str) -> Path:
        target = self.root / f"pulled-{revision[7:15]}"
        pull_revision(self.store, revision, target)
        return target


@contextmanager
def place(mode: WorkspaceMode, tmp_path: Path) -> Iterator[Path]:
    """Where that way works."""
    if mode != "reflink":
        yield tmp_path
        return
    with file_system(tmp_path / "xfs", "xfs") as root:
        yield root


@pytest.fixture(params=MODES)
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    mode: WorkspaceMode = request.param
    with place(mode, tmp_path) as root:
        store, volumes = new_store(root / "store"), FakeVolumes()
        async with opened(
            root / "state",
            store,
            volumes=volumes,
            user=(USER, USER),
            mode=mode,
            writable=WRITABLE,
        ) as files:
            yield Node(mode, root, store, volumes, files)


def pushed_project(node: Node) -> Pushed:
    return push(node.store, make_project(node.root / "project"))


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
async def test_what_a_run_does_comes_back_as_it_left_it(node: Node, edit: Edit) -> None:
    pushed = pushed_project(node)
    before = described(node.root / "project")
    prepared = await node.prepare("r-1", pushed.revision)
    with node.mounted(prepared) as top:
        assert described(top) == before
    node.execute(prepared, edit.script)
    changes = await node.files.changes(ended_run("r-1", prepared.workspace))
    kept = await node.keep("r-1", prepared)
    result = kept.result
    assert (result.added, result.changed, result.deleted) == edit.counts
    assert len(changes) == sum(edit.counts)
    assert [line.split(":")[0] for line in result.skipped] == list(edit.skips)
    assert described(node.pulled(result.revision or pushed.revision)) == edit.expected(before)
    assert bool(result.revision) == (edit.counts != (0, 0, 0))


async def test_the_way_is_told_with_the_run(node: Node) -> None:
    prepared = await node.prepare("r-1", pushed_project(node).revision)
    assert prepared.workspace.mode == node.mode
    assert node.files.workspace_modes.chosen == node.mode
    assert prepared.cost.files_fetched == 7  # of nine files two pairs are equal
    if node.mode != "overlay":
        assert prepared.cost.way == node.mode


async def test_the_next_run_finds_the_files_of_the_last_one(node: Node) -> None:
    first = await node.prepare("r-1", pushed_project(node).revision)
    node.execute(first, "rm -r data; mkdir data; echo 3 > data/three.csv; mv a.txt b.txt")
    kept = await node.keep("r-1", first)
    second = await node.prepare("r-2", kept.result.revision)
    with node.mounted(second) as top:
        assert described(top) == described(node.pulled(kept.result.revision))
    again = await node.keep("r-2", second)
    assert again.result.head == "unchanged"


async def test_a_directory_that_starts_empty_gets_what_the_run_makes(node: Node) -> None:
    prepared = await node.prepare("r-1", "")
    node.execute(prepared, 'test -z "$(ls -A)"; mkdir d; echo x > d/x')
    kept = await node.keep("r-1", prepared)
    assert described(node.pulled(kept.result.revision)) == {"d/": "", "d/x": "x\n"}


async def test_a_socket_is_named_and_left_out(node: Node) -> None:
    prepared = await node.prepare("r-1", "")
    with node.mounted(prepared) as top, socket.socket(socket.AF_UNIX) as server:
        fd = os.open(top, os.O_PATH)
        server.bind(f"/proc/self/fd/{fd}/s")
        os.close(fd)
    kept = await node.keep("r-1", prepared)
    assert kept.result.skipped == ("s: a socket cannot be stored",)


async def test_what_is_ignored_is_neither_stored_nor_deleted(node: Node) -> None:
    pushed = pushed_project(node)
    before = described(node.root / "project")
    prepared = await node.prepare("r-1", pushed.revision)
    node.execute(
        prepared,
        "printf '*.csv\\n/out/\\n' > .dominoignore; rm data/one.csv; echo no > no.csv; mkdir out; "
        "echo no > out/no; echo yes > yes.txt",
    )
    kept = await node.keep("r-1", prepared)
    files = described(node.pulled(kept.result.revision))
    assert files == {**before, ".dominoignore": "*.csv\n/out/\n", "yes.txt": "yes\n"}


async def test_diagnostics_are_those_that_this_very_run_wrote(node: Node) -> None:
    project = write_files(node.root / "project", {"dominostats.json": '{"old": 1}', "x": "x"})
    pushed = push(node.store, project)
    first = await node.prepare("r-1", pushed.revision)
    node.execute(first, "echo y > y")
    assert (await node.keep("r-1", first)).result.diagnostics is None
    second = await node.prepare("r-2", pushed.revision)
    node.execute(second, "rm dominostats.json; printf '{\"new\": 2}' > dominostats.json")
    assert (await node.keep("r-2", second)).result.diagnostics == {"new": 2}


async def test_nothing_of_a_run_is_left_once_it_is_discarded(node: Node) -> None:
    prepared = await node.prepare("r-1", pushed_project(node).revision)
    node.execute(prepared, "echo x > x")
    await node.files.discard("r-1", keep_workspace=False)
    assert not node.volumes.volumes
    assert not (node.root / "state" / "runs" / "r-1").exists()
    assert (await node.files.stats()).workspaces == 0


async def test_a_workspace_made_again_is_as_new(node: Node) -> None:
    pushed = pushed_project(node)
    first = await node.prepare("r-1", pushed.revision)
    node.execute(first, "echo left > left; rm a.txt")
    again = await node.prepare("r-1", pushed.revision)
    with node.mounted(again) as top:
        assert described(top) == described(node.root / "project")


async def test_hostile_writes_do_not_reach_the_cache(node: Node) -> None:
    """Every other run gets its files from there."""
    pushed = pushed_project(node)
    first = await node.prepare("r-1", pushed.revision)
    node.execute(first, HOSTILE)
    second = await node.prepare("r-2", pushed.revision)
    with node.mounted(second) as top:
        assert described(top) == described(node.root / "project")


HOSTILE = """
for name in a.txt twin.txt data/one.csv src/deep/x.py run.sh w/edit.txt; do
  chmod 777 $name 2>/dev/null || true
  (echo bad > $name) 2>/dev/null || true
  (true > $name) 2>/dev/null || true
  ln $name $name.link 2>/dev/null || true
  (echo bad >> $name.link) 2>/dev/null || true
  chown 1000:1000 $name 2>/dev/null || true
  touch -d @0 $name 2>/dev/null || true
  mv $name $name.moved; (echo bad >> $name.moved) 2>/dev/null || true
done
"""

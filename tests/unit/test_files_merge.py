"""Runs that meet at their project's head: merged, or kept side by side; nothing is overwritten."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from executord.core.run import Result, Run
from executord.files.client.pull import pull_revision
from executord.files.model.trees import EMPTY_TREE
from executord.files.project_files import ProjectFiles
from executord.files.store.landing import Arrival, Landed, land
from executord.files.store.store import Store
from executord.ports import Revision
from tests.fakes.files import (
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opened,
    push,
    whiteout,
    write_files,
)
from tests.fakes.s3 import new_bucket, options, s3_server

ROOT = Path(__file__).parents[2]
PROJECT = "alice/churn"
FILES = {"a.txt": "a", "b.txt": "b", "d/x": "x", "d/y": "y", "script": "s"}


@dataclass
class Runs:
    """Several runs from one base on one node."""

    files: ProjectFiles
    store: Store
    root: Path
    base: str
    bases: dict[str, str] = field(default_factory=dict)

    async def run(self, run_id: str, revision: str = "") -> tuple[Run, Path]:
        prepared = await self.files.prepare(run_id, revision or self.base, ignore_progress)
        return ended_run(run_id, prepared.workspace), self.root / "s/runs" / run_id / "upper"

    async def keep(self, run: Run) -> Result:
        return (await self.files.keep(run, ignore_progress)).result

    def pulled(self, revision: str) -> dict[str, str]:
        target = self.root / f"out-{uuid.uuid4().hex[:6]}"
        pull_revision(self.store, revision, target)
        return contents(target)


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[Runs]:
    store = new_store(tmp_path / "store")
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(tmp_path / "s", store) as files:
        yield Runs(files, store, tmp_path, pushed.revision)


# -- two runs from one base ------------------------------------------------------------------------


async def test_of_two_runs_with_disjoint_paths_the_second_is_merged_into_the_head(
    runs: Runs,
) -> None:
    one, upper_one = await runs.run("r-1")
    two, upper_two = await runs.run("r-2")
    write_files(upper_one, {"a.txt": "first", "new/one": "1"})
    write_files(upper_two, {"b.txt": "second", "new/two": "2"})
    whiteout(upper_two / "d")
    first, second = await runs.keep(one), await runs.keep(two)
    assert (first.head, second.head, second.conflicts) == ("moved", "merged", ())
    head = runs.store.head(PROJECT)
    assert head == second.head_revision
    joint = runs.store.revision(head)
    assert (joint.parent, joint.merged, joint.run) == (first.revision, second.revision, "r-2")
    own = runs.store.revision(second.revision)
    assert (own.parent, own.merged) == (runs.base, "")
    assert runs.store.run_revision(PROJECT, "r-2") == second.revision
    assert runs.pulled(head) == {
        "a.txt": "first",
        "b.txt": "second",
        "new/": "",
        "new/one": "1",
        "new/two": "2",
        "script": "s",
    }
    assert "new/one" not in runs.pulled(second.revision)


async def test_the_same_path_keeps_both_and_names_it(runs: Runs) -> None:
    one, upper_one = await runs.run("r-1")
    two, upper_two = await runs.run("r-2")
    write_files(upper_one, {"a.txt": "first", "other": "o"})
    write_files(upper_two, {"a.txt": "second", "mine": "m"})
    first, second = await runs.keep(one), await runs.keep(two)
    assert (second.head, second.conflicts, second.conflict_count) == ("conflict", ("a.txt",), 1)
    assert second.head_revision == ""
    assert runs.store.head(PROJECT) == first.revision
    assert runs.store.run_revision(PROJECT, "r-2") == second.revision
    assert runs.pulled(second.revision)["a.txt"] == "second"


async def test_equal_changes_on_both_sides_are_no_conflict(runs: Runs) -> None:
    one, upper_one = await runs.run("r-1")
    two, upper_two = await runs.run("r-2")
    write_files(upper_one, {"a.txt": "same", "other": "o"})
    write_files(upper_two, {"a.txt": "same"})
    whiteout(upper_one / "b.txt")
    whiteout(upper_two / "b.txt")
    first, second = await runs.keep(one), await runs.keep(two)
    assert (first.head, second.head) == ("moved", "merged")
    assert runs.pulled(second.head_revision)["other"] == "o"


async def test_a_deletion_against_a_change_and_a_mode_against_a_change_are_conflicts(
    runs: Runs,
) -> None:
    one, upper_one = await runs.run("r-1")
    two, upper_two = await runs.run("r-2")
    whiteout(upper_one / "d")
    write_files(upper_one, {"script": "s"})
    (upper_one / "script").chmod(0o755)
    write_files(upper_two, {"d/x": "changed", "script": "changed"})
    await runs.keep(one)
    second = await runs.keep(two)
    assert (second.head, sorted(second.conflicts)) == ("conflict", ["d/x", "script"])


async def test_patterns_of_what_is_ignored_are_merged_like_any_file(runs: Runs) -> None:
    one, upper_one = await runs.run("r-1")
    two, upper_two = await runs.run("r-2")
    write_files(upper_one, {".dominoignore": "*.log\n"})
    write_files(upper_two, {"kept.log": "l"})
    await runs.keep(one)
    second = await runs.keep(two)
    assert second.head == "merged"
    assert {".dominoignore", "kept.log"} <= runs.pulled(second.head_revision).keys()


async def test_keeping_again_gives_the_same_revision_and_no_second_merge(runs: Runs) -> None:
    one, upper_one = await runs.run("r-1")
    two, upper_two = await runs.run("r-2")
    write_files(upper_one, {"a.txt": "first"})
    write_files(upper_two, {"b.txt": "second"})
    await runs.keep(one)
    second = await runs.keep(two)
    assert await runs.keep(two) == replace(second, bytes_sent=0)
    three, upper_three = await runs.run("r-3", second.head_revision)
    write_files(upper_three, {"c": "c"})
    third = await runs.keep(three)
    assert await runs.keep(two) == replace(second, bytes_sent=0)
    assert runs.store.head(PROJECT) == third.revision


async def test_two_runs_that_start_a_project_at_once_are_merged(runs: Runs) -> None:
    ended = []
    for run_id, name in (("r-1", "one"), ("r-2", "two")):
        prepared = await runs.files.prepare(run_id, "", ignore_progress)
        write_files(runs.root / "s/runs" / run_id / "upper", {name: name})
        ended.append(ended_run(run_id, prepared.workspace, project="new/one"))
    assert [(await runs.keep(run)).head for run in ended] == ["moved", "merged"]
    assert runs.pulled(runs.store.head("new/one")) == {"one": "one", "two": "two"}


async def test_many_runs_at_once_all_land_and_none_is_lost(runs: Runs) -> None:
    ended = []
    for n in range(12):
        run, upper = await runs.run(f"r-{n}")
        write_files(upper, {f"out/{n}": str(n)})
        ended.append(run)
    results = await asyncio.gather(*(runs.keep(run) for run in ended))
    assert sorted(result.head for result in results) == ["merged"] * 11 + ["moved"]
    files = runs.pulled(runs.store.head(PROJECT))
    assert {f"out/{n}" for n in range(12)} <= files.keys()


# -- two daemons, and other stores -----------------------------------------------------------------

LANDER = """
import sys
from executord.files.store.store import Store
from tests.unit.test_files_merge import landed_many
landed_many(Store.open(sys.argv[1], {}), sys.argv[2], int(sys.argv[3]))
"""


def landed_many(store: Store, name: str, count: int) -> list[Landed]:
    """Revisions of one file each, all from the same base, one after the other."""
    return [land_one(store, f"{name}-{n}", {f"{name}-{n}": str(n)}) for n in range(count)]


def land_one(store: Store, run_id: str, files: dict[str, str]) -> Landed:
    from executord.files.model import digests, revisions, trees  # noqa: PLC0415 - for the child too

    tree, data = trees.encode(
        trees.file_entry(name, digests.of_bytes(text.encode()), len(text), executable=False)
        for name, text in files.items()
    )
    store.put_trees({tree: data})
    revision = Revision(tree=tree, time=1.0, run=run_id)
    digest, written = revisions.encode(revision)
    store.put_revision(digest, written)
    return land(store, store, PROJECT, Arrival(digest, revision, ("",)))


def ancestors(store: Store) -> Iterator[Revision]:
    head = store.head(PROJECT)
    while head:
        revision = store.revision(head)
        yield revision
        head = revision.parent


def test_two_processes_on_one_directory_lose_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", LANDER, store.url, name, "15"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()
    names = {entry.name for entry in store.tree(store.revision(store.head(PROJECT)).tree)}
    assert names == {f"{name}-{n}" for name in ("one", "two") for n in range(15)}
    assert len(list(ancestors(store))) == 30


def test_a_store_in_memory_merges_too() -> None:
    store = Store.open("memory://", {})
    heads = [landed.head for landed in landed_many(store, "x", 5)]
    assert heads == ["moved", "merged", "merged", "merged", "merged"]
    clash = land_one(store, "late", {"x-0": "other"})
    assert (clash.head, clash.conflicts) == ("conflict", ("x-0",))
    assert len(list(ancestors(store))) == 5


def test_an_s3_store_merges_by_conditional_put() -> None:
    with s3_server() as endpoint:
        url = f"s3://{new_bucket(endpoint)}/files"
        stores = [Store.open(url, options(endpoint)) for _ in range(3)]
        with ThreadPoolExecutor(3) as threads:
            landing = [
                threads.submit(landed_many, store, f"node-{n}", 4) for n, store in enumerate(stores)
            ]
            heads = [landed.head for each in landing for landed in each.result()]
        assert sorted(heads) == ["merged"] * 11 + ["moved"]
        tree = stores[0].revision(stores[0].head(PROJECT)).tree
        names = {entry.name for entry in stores[0].tree(tree)}
        assert names == {f"node-{node}-{n}" for node in range(3) for n in range(4)}
        assert len(list(ancestors(stores[0]))) == 12


class Overtaken(Store):
    """Before each of the first swaps somebody else moves the head."""

    overtakes = 3

    def move_head(self, project: str, expected: str, new: str) -> bool:
        if self.overtakes:
            self.overtakes -= 1
            land_one(Store(self.url, self._bucket), f"other-{self.overtakes}", self._other())
        return super().move_head(project, expected, new)

    def _other(self) -> dict[str, str]:
        return {f"other-{self.overtakes}": "o"}


def test_a_head_that_moves_between_look_and_swap_is_merged_again() -> None:
    plain = Store.open("memory://", {})
    landed = land_one(Overtaken(plain.url, plain._bucket), "mine", {"mine": "m"})
    assert landed.head == "merged"
    names = {entry.name for entry in plain.tree(plain.revision(plain.head(PROJECT)).tree)}
    assert names == {"mine", "other-0", "other-1", "other-2"}


def test_a_head_without_a_common_ancestor_is_left_alone() -> None:
    store = Store.open("memory://", {})
    land_one(store, "theirs", {"x": "x"})
    revision = Revision(tree=EMPTY_TREE, parent="sha256:" + "f" * 64, run="mine")
    arrival = Arrival("sha256:" + "e" * 64, revision, ("sha256:" + "f" * 64,))
    head = store.head(PROJECT)
    assert land(store, store, PROJECT, arrival).head == "conflict"
    assert store.head(PROJECT) == head


def test_results_survive_json(tmp_path: Path) -> None:
    """The paths of a conflict may be no UTF-8; they are kept as people write them."""
    store = new_store(tmp_path / "store")
    land_one(store, "one", {"caf\udce9": "1"})
    clash = land_one(store, "two", {"caf\udce9": "2"})
    assert json.loads(json.dumps(clash.conflicts)) == ["caf\\xe9"]

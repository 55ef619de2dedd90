"""Ways of making a run's directory: which is chosen, what is read, and changing one's mind."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.files.model import trees
from executord.files.model.trees import EMPTY_TREE, Tree
from executord.files.system.directories import open_regular
from executord.files.workspace.changes import Found
from executord.files.workspace.modes import mount_trial, probe_overlay
from executord.files.workspace.modes.full import WholeDirectory
from executord.files.workspace.modes.tree_steps import Enter, Leave, steps
from tests.fakes.files import (
    FakeVolumes,
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)

RUN_USER = 1000
FILES = {"a.txt": "a", "twin": "a", "d/b.txt": "b", "d/e/c.txt": "c", "empty/": ""}


def blob_files(state: Path, folder: str) -> list[Path]:
    return sorted((state / folder).glob("*/*"))


# -- choosing ------------------------------------------------------------------------------------


async def test_an_overlay_is_chosen_where_it_works_and_the_rest_is_judged_too(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path / "s", new_store(tmp_path / "store")) as files:
        modes = files.workspace_modes
    assert (modes.chosen, modes.forced) == ("overlay", False)
    assert [verdict.mode for verdict in modes.verdicts] == [
        "overlay",
        "reflink",
        "hardlink",
        "copy",
    ]
    assert all(bool(verdict.why) != verdict.works for verdict in modes.verdicts)


async def test_links_are_refused_where_runs_are_the_daemons_own_user(tmp_path: Path) -> None:
    """He could write through another name what every run gets."""
    store = new_store(tmp_path / "store")
    with pytest.raises(FaultError, match="the daemon runs as the user of runs") as caught:
        async with opened(tmp_path / "s", store, mode="hardlink", user=(os.geteuid(), 0)):
            pass
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED
    assert "`runs.user`" in caught.value.fault.detail
    assert 'set `files.mode` to "auto" (what works here: "overlay"' in caught.value.fault.detail


async def test_trying_leaves_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", new_store(tmp_path / "store")):
        for folder in ("tmp", "runs"):
            assert not list((tmp_path / "s" / folder).iterdir())


def test_where_nobody_may_mount_the_file_system_is_asked(tmp_path: Path) -> None:
    lower, folder = tmp_path / "lower", tmp_path / "folder"
    probe_overlay._make(lower, folder)
    assert probe_overlay._why_not_by_facts(folder) == ""
    assert probe_overlay._types_listed(lower) == {4, 8}  # DT_DIR, DT_REG


def test_a_child_that_may_not_mount_says_so_and_nothing_more(tmp_path: Path) -> None:
    """Exit status 3 sends the probe to the facts instead of refusing."""
    lower, folder = tmp_path / "lower", tmp_path / "folder"
    probe_overlay._make(lower, folder)
    program = str(mount_trial.__file__)
    limit = (
        "import ctypes, os, sys; from pathlib import Path; sys.argv = sys.argv[1:]; "
        + WITHOUT_NAMESPACES
    )
    done = subprocess.run(
        [sys.executable, "-c", limit, program, str(folder), "same-user"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == mount_trial.MAY_NOT_MOUNT, done.stderr
    assert done.stdout.startswith("mounting is not allowed here")


# A user without rights, in whose name no namespace can be made because he is in a chroot.
WITHOUT_NAMESPACES = (
    "text = open(sys.argv[0]).read(); os.chroot('/usr'); os.setgid(65534); os.setuid(65534); "
    "exec(compile(text, 'trial', 'exec'), {'__name__': '__main__'})"
)


# -- the walk ------------------------------------------------------------------------------------


class Forest:
    """Trees in memory, made from nested mappings."""

    def __init__(self) -> None:
        self.trees: dict[str, Tree] = {EMPTY_TREE: ()}
        self.asked: list[int] = []

    def plant(self, names: Mapping[str, object]) -> str:
        entries = []
        for name, below in names.items():
            if isinstance(below, dict):
                digest = self.plant(below)
                entries.append(trees.directory_entry(name, digest, self.trees[digest]))
            else:
                entries.append(
                    trees.file_entry(name, "sha256:" + "0" * 64, len(str(below)), executable=False)
                )
        digest, data = trees.encode(entries)
        self.trees[digest] = trees.decode(data)
        return digest

    def get(self, digests: object) -> dict[str, Tree]:
        wanted = list(digests)  # type: ignore[call-overload]
        self.asked.append(len(wanted))
        return {digest: self.trees[digest] for digest in wanted}


def test_entries_are_numbered_so_that_places_follow_from_the_counts() -> None:
    forest = Forest()
    root = forest.plant({"a": {"x": 1, "deep": {"y": 2, "z": 3}}, "b": 4, "c": {"w": 5}, "d": {}})
    told = [
        (step.name, step.first, [entry.name for entry in step.entries])
        for step in steps(root, forest.get)
        if isinstance(step, Enter)
    ]
    assert told == [
        ("", 0, ["a", "b", "c", "d"]),
        ("a", 4, ["deep", "x"]),
        ("deep", 6, ["y", "z"]),
        ("c", 8, ["w"]),
        ("d", 9, []),
    ]
    assert sum(isinstance(step, Leave) for step in steps(root, forest.get)) == len(told)


def test_the_trees_of_neighbours_are_asked_for_together() -> None:
    forest = Forest()
    root = forest.plant({f"d{number:03}": {"x": number} for number in range(300)})
    assert sum(isinstance(step, Enter) for step in steps(root, forest.get)) == 301
    assert forest.asked == [1, 256, 44]


def test_a_directory_that_is_not_as_large_as_its_parent_says_is_refused() -> None:
    forest = Forest()
    root = forest.plant({"d": {"x": 1}})
    forest.trees[root] = [
        trees.directory_entry("d", forest.trees[root][0].digest, ()),
    ]
    with pytest.raises(FaultError, match="not as large as its parent says"):
        list(steps(root, forest.get))


# -- reading a whole directory -------------------------------------------------------------------


class Reading:
    """A run's whole directory, and which files were asked for when it was read."""

    def __init__(self, state: Path, run_id: str) -> None:
        self.home = state / "runs" / run_id
        self.asked: list[str] = []

    def take(self, found: Found) -> tuple[str, int]:
        self.asked.append(found.path)
        os.close(open_regular(found.dir_fd, found.name))
        return "sha256:" + "f" * 64, found.size


async def asked_for(tmp_path: Path, mode: str, work: str = "", *, torn: bool = False) -> list[str]:
    """Which files are read at the end of a run that did `work` in the shell."""
    store, state = new_store(tmp_path / "store"), tmp_path / "s"
    pushed = push(store, write_files(tmp_path / "project", FILES))
    volumes = FakeVolumes()
    async with opened(state, store, volumes=volumes, mode=mode, user=(RUN_USER, RUN_USER)) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        reading = Reading(state, "r-1")
        top, marks = reading.home / "files", reading.home / "marks"
        shell = ["/bin/sh", "-ec", work]
        await asyncio.to_thread(subprocess.run, shell, cwd=top, user=RUN_USER, check=True)
        if torn:
            os.truncate(marks, marks.stat().st_size // 2)
        whole = WholeDirectory(top, marks, RUN_USER)
        whole.merge(
            prepared.workspace.tree,
            files._parts.fetcher,
            take_file=reading.take,
            read_base=lambda entry: b"",
        )
    return sorted(reading.asked)


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
async def test_only_files_that_the_run_wrote_are_read(tmp_path: Path, mode: str) -> None:
    work = "echo x > new; rm -f d/b.txt; echo B > d/b.txt; mv d/e/c.txt d/e/moved; mkdir f"
    assert await asked_for(tmp_path, mode, work) == ["d/b.txt", "d/e/moved", "new"]


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
async def test_of_an_untouched_directory_nothing_is_read(tmp_path: Path, mode: str) -> None:
    assert await asked_for(tmp_path, mode) == []


async def test_files_whose_marks_are_lost_are_read(tmp_path: Path) -> None:
    """Torn by a power cut: half of it is gone, and what stood there has to be looked at."""
    asked = await asked_for(tmp_path, "copy", torn=True)
    assert "d/e/c.txt" in asked
    assert "a.txt" not in asked


async def test_links_made_by_other_runs_do_not_make_a_file_changed(tmp_path: Path) -> None:
    """They change the inode's times."""
    store, volumes = new_store(tmp_path / "store"), FakeVolumes()
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(
        tmp_path / "s", store, volumes=volumes, mode="hardlink", user=(RUN_USER, RUN_USER)
    ) as files:
        first = await files.prepare("r-1", pushed.revision, ignore_progress)
        await files.prepare("r-2", pushed.revision, ignore_progress)
        await files.discard("r-2", keep_workspace=False)
        reading = Reading(tmp_path / "s", "r-1")
        whole = WholeDirectory(reading.home / "files", reading.home / "marks", RUN_USER)
        merged = whole.merge(
            first.workspace.tree,
            files._parts.fetcher,
            take_file=reading.take,
            read_base=lambda entry: b"",
        )
    assert (reading.asked, merged.tree) == ([], first.workspace.tree)
    assert set(merged.made) <= {EMPTY_TREE}


async def test_a_file_that_got_the_inode_of_a_blob_is_not_taken_for_it(tmp_path: Path) -> None:
    """The run deletes its link, the cache its blob, and the number is given out again."""
    store, volumes = new_store(tmp_path / "store"), FakeVolumes()
    pushed = push(store, write_files(tmp_path / "project", {"x": "original"}))
    async with opened(
        tmp_path / "s", store, volumes=volumes, mode="hardlink", user=(RUN_USER, RUN_USER)
    ) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        reading = Reading(tmp_path / "s", "r-1")
        x = reading.home / "files" / "x"
        blob = blob_files(tmp_path / "s", "blobs-ro-v1")[0]
        assert x.stat().st_ino == blob.stat().st_ino
        # the same inode with the same size and mode, only that now the run could have written it
        os.chown(blob, RUN_USER, RUN_USER)
        whole = WholeDirectory(reading.home / "files", reading.home / "marks", RUN_USER)
        whole.merge(
            prepared.workspace.tree,
            files._parts.fetcher,
            take_file=reading.take,
            read_base=lambda entry: b"",
        )
    assert reading.asked == ["x"]


# -- what is made --------------------------------------------------------------------------------


async def test_links_are_read_only_and_what_is_listed_is_the_runs_own(tmp_path: Path) -> None:
    store, volumes = new_store(tmp_path / "store"), FakeVolumes()
    pushed = push(store, write_files(tmp_path / "project", FILES))
    async with opened(
        tmp_path / "s",
        store,
        volumes=volumes,
        mode="hardlink",
        user=(RUN_USER, RUN_USER),
        writable=["/d/*", "!/d/e/"],
    ) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        top = volumes.volumes[prepared.workspace.volume]["directory"]
    facts = {name: (top / name).stat() for name in ("a.txt", "twin", "d/b.txt", "d/e/c.txt")}
    own = os.geteuid()
    assert {name: (each.st_uid, each.st_mode & 0o777) for name, each in facts.items()} == {
        "a.txt": (own, 0o444),
        "twin": (own, 0o444),
        "d/b.txt": (RUN_USER, 0o644),
        "d/e/c.txt": (own, 0o444),
    }
    assert (
        facts["a.txt"].st_ino != facts["twin"].st_ino
    )  # else no run could move one over the other
    assert sorted(each.st_nlink for each in facts.values()) == [1, 1, 2, 2]
    assert all((top / name).stat().st_uid == RUN_USER for name in ("", "d", "d/e", "empty"))


async def test_a_thousand_files_in_many_pieces_are_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executord.files.workspace.modes.filling._PIECE_STEPS", 7)
    names = {f"d{number % 13}/e{number % 7}/f{number}": str(number) for number in range(1000)}
    store, volumes = new_store(tmp_path / "store"), FakeVolumes()
    pushed = push(store, write_files(tmp_path / "project", names))
    async with opened(tmp_path / "s", store, volumes=volumes, mode="copy") as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
        assert prepared.cost.files_fetched == 1000
        top = volumes.volumes[prepared.workspace.volume]["directory"]
        assert contents(top) == contents(tmp_path / "project")
        kept = await files.keep(ended_run("r-1", prepared.workspace), ignore_progress)
    assert kept.result.head == "unchanged"


# -- another way after a restart -----------------------------------------------------------------


async def test_a_run_goes_on_in_the_way_it_was_made_while_new_ones_get_another(
    tmp_path: Path,
) -> None:
    store, state, volumes = new_store(tmp_path / "store"), tmp_path / "s", FakeVolumes()
    pushed = push(store, write_files(tmp_path / "project", FILES))
    user = (RUN_USER, RUN_USER)
    made = {}
    for mode in ("overlay", "hardlink", "copy"):
        async with opened(state, store, volumes=volumes, mode=mode, user=user) as files:
            made[mode] = await files.prepare(f"r-{mode}", pushed.revision, ignore_progress)
    upper = volumes.volumes[made["overlay"].workspace.volume]["upper"]
    (upper / "new").write_text("by overlay")
    for mode in ("hardlink", "copy"):
        top = volumes.volumes[made[mode].workspace.volume]["directory"]
        (top / "new").write_text(f"by {mode}")
        (top / "a.txt").unlink()
    async with opened(state, store, volumes=volumes, mode="overlay", user=user) as files:
        for mode, prepared in made.items():
            assert prepared.workspace.mode == mode
            run = ended_run(f"r-{mode}", prepared.workspace)
            changes = [(each.kind, each.path) for each in await files.changes(run)]
            added, deleted = ("added", "new"), ("deleted", "a.txt")
            assert changes == ([added] if mode == "overlay" else [deleted, added])
            kept = await files.keep(run, ignore_progress)
            assert kept.result.added == 1
            await files.discard(f"r-{mode}", keep_workspace=False)
        assert not volumes.volumes


async def test_blobs_become_read_only_ones_and_are_not_fetched_again(tmp_path: Path) -> None:
    store, state = new_store(tmp_path / "store"), tmp_path / "s"
    pushed = push(store, write_files(tmp_path / "project", FILES))
    user = (RUN_USER, RUN_USER)
    async with opened(state, store, mode="overlay", user=user) as files:
        await files.prepare("r-1", pushed.revision, ignore_progress)
        await files.discard("r-1", keep_workspace=False)
    before = {path.name: path.stat().st_ino for path in blob_files(state, "blobs-v1")}
    async with opened(state, store, mode="hardlink", user=user) as files:
        assert not blob_files(state, "blobs-v1")
        blobs = blob_files(state, "blobs-ro-v1")
        assert {path.name: path.stat().st_ino for path in blobs} == before
        assert {path.stat().st_mode & 0o777 for path in blobs} == {0o444}
        assert {path.stat().st_uid for path in blobs} == {os.geteuid()}
        prepared = await files.prepare("r-2", pushed.revision, ignore_progress)
        assert prepared.cost.files_fetched == 0
        assert (await files.stats()).blobs == 3


async def test_a_blob_that_a_run_has_a_link_to_never_becomes_the_runs_to_write(
    tmp_path: Path,
) -> None:
    """It is fetched again instead, and the run keeps its own."""
    store, state, volumes = new_store(tmp_path / "store"), tmp_path / "s", FakeVolumes()
    pushed = push(store, write_files(tmp_path / "project", FILES))
    user = (RUN_USER, RUN_USER)
    async with opened(state, store, volumes=volumes, mode="hardlink", user=user) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
    top = volumes.volumes[prepared.workspace.volume]["directory"]
    async with opened(state, store, volumes=volumes, mode="overlay", user=user) as files:
        assert not blob_files(state, "blobs-ro-v1")
        assert {(top / name).stat().st_uid for name in ("a.txt", "d/b.txt")} == {os.geteuid()}
        again = await files.prepare("r-2", pushed.revision, ignore_progress)
        assert again.cost.files_fetched == 3
        assert {path.stat().st_uid for path in blob_files(state, "blobs-v1")} == {RUN_USER}
        assert contents(top) == contents(tmp_path / "project")


async def test_blobs_that_live_overlays_stand_on_are_left_alone(tmp_path: Path) -> None:
    store, state, volumes = new_store(tmp_path / "store"), tmp_path / "s", FakeVolumes()
    pushed = push(store, write_files(tmp_path / "project", FILES))
    user = (RUN_USER, RUN_USER)
    async with opened(state, store, volumes=volumes, mode="overlay", user=user) as files:
        prepared = await files.prepare("r-1", pushed.revision, ignore_progress)
    lower = volumes.volumes[prepared.workspace.volume]["lower"][0]
    async with opened(state, store, volumes=volumes, mode="hardlink", user=user) as files:
        assert contents(lower) == contents(tmp_path / "project")
        assert (lower / "a.txt").stat().st_uid == RUN_USER
        assert len(blob_files(state, "blobs-v1")) == 3
        await files.prepare("r-2", pushed.revision, ignore_progress)
        assert len(blob_files(state, "blobs-ro-v1")) == 3


async def test_a_lease_without_a_way_is_one_of_an_overlay(tmp_path: Path) -> None:
    """As an earlier version wrote it."""
    store, state = new_store(tmp_path / "store"), tmp_path / "s"
    async with opened(state, store) as files:
        prepared = await files.prepare("r-1", "", ignore_progress)
    path = state / "runs" / "r-1" / "lease.json"
    lease = json.loads(path.read_text())
    lease.pop("mode", None)
    path.write_text(json.dumps(lease))
    (state / "runs" / "r-1" / "upper" / "new").write_text("n")
    async with opened(state, store, mode="copy") as files:
        changes = await files.changes(ended_run("r-1", prepared.workspace))
        assert [change.path for change in changes] == ["new"]

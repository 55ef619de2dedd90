"""Revisions mounted read-only into a run: made ready with its files, pinned, and let go again."""

from pathlib import Path

import pytest

from executord.core.datasets import run_of_volume, volume_name
from executord.core.reasons import Fault, FaultError, Reason
from executord.core.run import Mount, Stage
from executord.engine.spec import read_only_volume_config
from executord.files.client.push import Pushed
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import Prepared
from tests.fakes.files import (
    FakeVolumes,
    contents,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)

MANY = {f"d{n // 40}/f{n}.csv": f"{n}" for n in range(400)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def project(tmp_path: Path, store: Store) -> Pushed:
    return push(store, write_files(tmp_path / "project", {"a.txt": "a", "b/c.txt": "c"}))


@pytest.fixture
def data(tmp_path: Path, store: Store) -> Pushed:
    return push(store, write_files(tmp_path / "data", MANY), "alice/data")


def edited(tmp_path: Path, store: Store) -> Pushed:
    """The data with one file changed and one gone: a layer on what is here."""
    (tmp_path / "data/d0/f0.csv").write_text("changed")
    (tmp_path / "data/d1/f41.csv").unlink()
    return push(store, tmp_path / "data", "alice/data")


def mounted(pushed: Pushed, target: str = "/data/x") -> Mount:
    return Mount(source="", target=target, revision=pushed.revision)


async def prepare(
    files: ProjectFiles, project: Pushed, *mounts: Mount, run_id: str = "r-1"
) -> Prepared:
    return await files.prepare(run_id, project.revision, ignore_progress, mounts)


async def pins(files: ProjectFiles) -> dict[str, tuple[str, ...]]:
    return {entry.digest: entry.pinned_by for entry in await files.entries() if entry.pinned_by}


async def test_a_whole_snapshot_is_mounted_as_it_lies_there(
    tmp_path: Path, store: Store, project: Pushed, data: Pushed
) -> None:
    volumes = FakeVolumes()
    async with opened(tmp_path / "s", store, volumes=volumes) as files:
        prepared = await prepare(files, project, mounted(data))
    (dataset,) = prepared.workspace.datasets
    assert (dataset.target, dataset.tree, dataset.volume) == ("/data/x", data.tree, "")
    assert contents(Path(dataset.source)) == contents(tmp_path / "data")
    assert list(volumes.volumes) == [prepared.workspace.volume]


async def test_what_it_cost_stands_beside_the_cost_of_the_projects_files(
    tmp_path: Path, store: Store, project: Pushed, data: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        first = await prepare(files, project, mounted(data))
        again = await prepare(files, project, mounted(data), run_id="r-2")
        none = await prepare(files, project, run_id="r-3")
    assert first.cost.files_fetched == 2
    assert first.dataset_cost is not None
    assert (first.dataset_cost.stage, first.dataset_cost.way) == (Stage.DATASETS, "farm")
    assert first.dataset_cost.files_fetched == 400
    assert again.dataset_cost is not None
    assert (again.dataset_cost.way, again.dataset_cost.files_from_cache) == ("snapshot", 400)
    assert none.dataset_cost is None


async def test_a_chain_of_layers_is_mounted_as_a_volume_without_anything_to_write(
    tmp_path: Path, store: Store, project: Pushed, data: Pushed
) -> None:
    volumes = FakeVolumes()
    async with opened(tmp_path / "s", store, volumes=volumes) as files:
        await prepare(files, project, mounted(data))
        later = edited(tmp_path, store)
        prepared = await prepare(files, project, mounted(later), run_id="r-2")
        (dataset,) = prepared.workspace.datasets
        assert (dataset.source, dataset.volume) == ("", "executord-0123abcd.d0-r-2")
        volume = volumes.volumes[dataset.volume]
        assert len(volume["lower"]) == 2
        assert "upper" not in volume
        assert volume["labels"] == {"executord.instance": "0123abcd", "executord.run": "r-2"}
        await files.discard("r-2", keep_workspace=False)
        assert dataset.volume not in volumes.volumes


async def test_a_run_pins_what_it_mounts_until_it_is_clean_also_over_a_restart(
    tmp_path: Path, store: Store, project: Pushed, data: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        await prepare(files, project, mounted(data))
        assert (await pins(files))[data.tree] == ("r-1",)
    async with opened(tmp_path / "s", store) as files:
        assert (await pins(files))[data.tree] == ("r-1",)
        assert not (await files.prune(dry_run=False)).victims
        await files.discard("r-1", keep_workspace=False)
        assert await pins(files) == {}


async def test_volumes_of_a_daemon_that_was_killed_are_found_by_the_lease(
    tmp_path: Path, store: Store, project: Pushed, data: Pushed
) -> None:
    volumes = FakeVolumes()
    async with opened(tmp_path / "s", store, volumes=volumes) as files:
        await prepare(files, project, mounted(data), run_id="r-0")
        await prepare(files, project, mounted(edited(tmp_path, store)))
    assert len(volumes.volumes) == 3
    async with opened(tmp_path / "s", store, volumes=volumes) as files:
        await files.discard("r-1", keep_workspace=True)
        await files.discard("r-0", keep_workspace=False)
        assert volumes.volumes == {}


async def test_one_revision_may_be_mounted_twice_and_beside_itself_as_the_project(
    tmp_path: Path, store: Store, data: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        prepared = await prepare(files, data, mounted(data, "/a"), mounted(data, "/b"))
        assert [dataset.target for dataset in prepared.workspace.datasets] == ["/a", "/b"]
        assert {dataset.tree for dataset in prepared.workspace.datasets} == {data.tree}
        assert prepared.dataset_cost is not None
        assert prepared.dataset_cost.files_fetched == 0


async def test_a_revision_that_is_not_there_is_told_with_its_place(
    tmp_path: Path, store: Store, project: Pushed
) -> None:
    missing = Mount(source="", target="/data/x", revision="sha256:" + "0" * 64)
    async with opened(tmp_path / "s", store) as files:
        with pytest.raises(FaultError) as caught:
            await prepare(files, project, missing)
        fault = caught.value.fault
        assert fault.reason is Reason.REVISION_NOT_FOUND
        assert "/data/x" in fault.detail
        assert fault.evidence["target"] == "/data/x"
        await files.discard("r-1", keep_workspace=False)
        assert await pins(files) == {}


async def test_mounts_of_the_node_are_none_of_its_business(
    tmp_path: Path, store: Store, project: Pushed
) -> None:
    async with opened(tmp_path / "s", store) as files:
        prepared = await prepare(files, project, Mount(source="/sets", target="/data"))
    assert prepared.workspace.datasets == ()


async def test_an_engine_that_refuses_the_volume_leaves_a_lease_to_clean_up_by(
    tmp_path: Path, store: Store, project: Pushed, data: Pushed
) -> None:
    class Refuses(FakeVolumes):
        async def create_read_only_volume(self, name: str, **_: object) -> None:
            raise FaultError(Fault(Reason.ENGINE_REFUSED, f"No {name}."))

    async with opened(tmp_path / "s", store, volumes=Refuses()) as files:
        await prepare(files, project, mounted(data))
        later = edited(tmp_path, store)
        with pytest.raises(FaultError):
            await prepare(files, project, mounted(later), run_id="r-2")
        await files.discard("r-2", keep_workspace=False)
        assert later.tree not in await pins(files)


def test_no_runs_volume_is_taken_for_anothers() -> None:
    name = volume_name("0123abcd", "r-1", 3)
    assert run_of_volume("0123abcd", name) == "r-1"
    assert run_of_volume("ffffffff", name) == ""
    assert run_of_volume("0123abcd", "executord-0123abcd-r-1") == ""
    assert run_of_volume("0123abcd", "executord-0123abcd-r.d0-1") == ""
    assert run_of_volume("0123abcd", volume_name("0123abcd", "0123abcd.d0-r", 0)) == (
        "0123abcd.d0-r"
    )


# -- what the engine is told -----------------------------------------------------------------------


def test_the_engine_is_given_no_directory_to_write() -> None:
    lower = (Path("/s/layers-v1/b/root"), Path("/s/snapshots-v1/a/root"))
    config = read_only_volume_config("v", lower=lower, labels={"l": "1"})
    assert config["DriverOpts"] == {
        "type": "overlay",
        "device": "overlay",
        "o": "lowerdir=/s/layers-v1/b/root:/s/snapshots-v1/a/root,userxattr",
    }


@pytest.mark.parametrize(
    "lower",
    [
        (Path("/one"),),
        (Path("/a"), Path("relative")),
        (Path("/a"), Path("/b:c")),
        (Path("/a"), Path("/b,upperdir=/c")),
        (Path("/a"), Path("/b/../c")),
        tuple(Path(f"/{number}/{'x' * 200}") for number in range(20)),
    ],
)
def test_what_cannot_be_one_read_only_mount_is_refused(lower: tuple[Path, ...]) -> None:
    with pytest.raises(FaultError) as caught:
        read_only_volume_config("v", lower=lower, labels={})
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED

"""Store revisions mounted into real containers: readable, and by nobody to be written."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executord.core.run import Dataset, Mount
from executord.engine.docker import DockerEngine
from executord.files.client.push import Pushed
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import BindMount, ContainerSpec, Prepared, VolumeMount
from tests.fakes.files import ignore_progress, new_store, opened, push, write_files
from tests.harness.daemon import Daemon, engine, running_daemon

IMAGE = "executord-test/busybox:1"
SETS = {f"part{n // 50}/f{n}.csv": f"row {n}\n" for n in range(500)} | {"gone/x": "x"}
ATTACKS = (
    "echo bad > /data/x/part0/f0.csv",
    "echo bad >> /data/x/part0/f0.csv",
    "echo bad > /data/x/new",
    "rm /data/x/part0/f1.csv",
    "mv /data/x/part0 /data/x/part9",
    "chmod 777 /data/x/part0/f0.csv",
    "chown 7 /data/x/part0/f0.csv",
    "ln /data/x/part0/f0.csv /data/x/again",
    "touch /data/x/part0/f0.csv",
    "mknod /data/x/null c 1 3",
    "mount -o remount,rw /data/x",
    "umount /data/x",
)
AGAIN = "mkdir -p /data/x/part0; touch /data/x/part0/f0.csv /data/x/part0/f1.csv"
TRY_ALL = "\n".join(
    f"( {AGAIN}; {attack} ) 2>/dev/null && echo DONE {number}"
    for number, attack in enumerate(ATTACKS)
)


@dataclass
class Node:
    engine: DockerEngine
    files: ProjectFiles
    store: Store
    root: Path
    instance: str

    async def prepare(self, *mounts: Mount) -> Prepared:
        return await self.files.prepare(f"r-{uuid.uuid4().hex[:6]}", "", ignore_progress, mounts)

    async def output_of(self, prepared: Prepared, script: str, user: str = "1000:1000") -> str:
        datasets = prepared.workspace.datasets
        name = f"executord-{self.instance}-{uuid.uuid4().hex[:8]}"
        spec = ContainerSpec(
            name=name,
            image=IMAGE,
            command=("sh", "-c", script),
            env={},
            working_dir="/mnt",
            volume=prepared.workspace.volume,
            user=user,
            network="none",
            cpus=1.0,
            memory_bytes=128 << 20,
            pids_limit=64,
            binds=tuple(
                BindMount(source=each.source, target=each.target, read_only=True)
                for each in datasets
                if each.source
            ),
            volumes=tuple(
                VolumeMount(volume=each.volume, target=each.target)
                for each in datasets
                if each.volume
            ),
        )
        container = await self.engine.create_container(spec)
        try:
            async with self.engine.watch_exit(container) as ended:
                await self.engine.start_container(container)
                await asyncio.wait_for(ended(), 60)
            facts = await self.engine.inspect_container(container)
            assert facts is not None
            lines = (await asyncio.to_thread(Path(facts.log_path).read_text)).splitlines()
            return "".join(str(json.loads(line)["log"]) for line in lines)
        finally:
            await self.engine.remove_container(container)


@pytest.fixture
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    """Its parameter, if any, is the way of making working directories."""
    mode = getattr(request, "param", "auto")
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    client = DockerEngine(url=url, deadline_seconds=30.0)
    await client.open()
    instance = uuid.uuid4().hex[:8]
    store = new_store(tmp_path / "store")
    try:
        async with opened(
            tmp_path / "state",
            store,
            volumes=client,
            user=(1000, 1000),
            instance=instance,
            mode=mode,
        ) as files:
            yield Node(client, files, store, tmp_path, instance)
            for path in (tmp_path / "state" / "runs").iterdir():
                await files.discard(path.name, keep_workspace=False)
        assert not await client.list_volumes({"executord.instance": instance})
    finally:
        await client.close()


def first(node: Node) -> Pushed:
    return push(node.store, write_files(node.root / "sets", SETS), "alice/sets")


def later(node: Node) -> Pushed:
    """A file changed, one gone, a directory replaced by a file: a layer on the first."""
    (node.root / "sets/part0/f0.csv").write_text("changed\n")
    (node.root / "sets/part0/f1.csv").unlink()
    (node.root / "sets/gone/x").unlink()
    (node.root / "sets/gone").rmdir()
    (node.root / "sets/gone").write_text("a file now\n")
    return push(node.store, node.root / "sets", "alice/sets")


def at(pushed: Pushed, target: str = "/data/x") -> Mount:
    return Mount(source="", target=target, revision=pushed.revision)


def the_dataset(prepared: Prepared) -> Dataset:
    (dataset,) = prepared.workspace.datasets
    return dataset


async def layered(node: Node) -> Prepared:
    await node.prepare(at(first(node)))
    prepared = await node.prepare(at(later(node)))
    assert the_dataset(prepared).volume
    return prepared


async def test_a_snapshot_can_be_read_by_the_runs_user(node: Node) -> None:
    prepared = await node.prepare(at(first(node)))
    assert the_dataset(prepared).source
    script = "cat /data/x/part0/f7.csv; find /data/x -type f | wc -l"
    assert await node.output_of(prepared, script) == "row 7\n501\n"


async def test_a_chain_of_layers_shows_the_later_revision(node: Node) -> None:
    prepared = await layered(node)
    script = (
        "cat /data/x/part0/f0.csv /data/x/gone /data/x/part0/f7.csv; "
        "test -e /data/x/part0/f1.csv || echo gone; find /data/x -type f | wc -l"
    )
    assert await node.output_of(prepared, script) == "changed\na file now\nrow 7\ngone\n500\n"


@pytest.mark.parametrize("user", ["1000:1000", "0:0"])
async def test_nobody_writes_into_a_snapshot(node: Node, user: str) -> None:
    pushed = first(node)
    prepared = await node.prepare(at(pushed))
    assert await node.output_of(prepared, TRY_ALL, user) == ""
    again = await node.prepare(at(pushed))
    assert await node.output_of(again, "cat /data/x/part0/f0.csv") == "row 0\n"


@pytest.mark.parametrize("node", ["copy", "hardlink"], indirect=True)
async def test_where_runs_have_directories_of_their_own_revisions_are_mounted_as_well(
    node: Node,
) -> None:
    await node.prepare(at(first(node)))
    pushed = later(node)
    ahead = await node.files.ready_ahead(pushed.revision, "ahead:r-1", ignore_progress)
    assert ahead.way == "blobs"
    prepared = await node.prepare(at(pushed))
    assert the_dataset(prepared).source
    assert not the_dataset(prepared).volume
    assert prepared.dataset_cost is not None
    assert prepared.dataset_cost.files_fetched == 0
    for user in ("1000:1000", "0:0"):
        assert await node.output_of(prepared, TRY_ALL, user) == ""
    again = await node.prepare(at(pushed))
    assert await node.output_of(again, "cd /data/x/part0; cat f0.csv f7.csv") == "changed\nrow 7\n"
    assert "writable" in await node.output_of(again, "touch /mnt/own && echo writable")


@pytest.mark.parametrize("user", ["1000:1000", "0:0"])
async def test_nobody_writes_into_a_chain_of_layers(node: Node, user: str) -> None:
    await node.prepare(at(first(node)))
    pushed = later(node)
    prepared = await node.prepare(at(pushed))
    assert the_dataset(prepared).volume
    assert await node.output_of(prepared, TRY_ALL, user) == ""
    again = await node.prepare(at(pushed))
    assert await node.output_of(again, "cd /data/x/part0; cat f0.csv f7.csv") == "changed\nrow 7\n"


async def test_the_attacks_would_be_seen_where_they_are_possible(node: Node) -> None:
    """Else the tests above could not fail: the same words on a directory that can be written."""
    prepared = await node.prepare(at(first(node)))
    seen = await node.output_of(prepared, TRY_ALL.replace("/data/x", "/mnt/x"))
    assert seen.count("DONE") >= 8


# -- the whole daemon ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon() as running:
        yield running


def pushed(daemon: Daemon, directory: Path, project: str) -> str:
    words = ("--json", "push", str(directory), "--project", project)
    done = executorctl(daemon, *words)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["revision"])


def executorctl(daemon: Daemon, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "executord.cli", "--socket", str(daemon.socket), *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def volumes() -> set[str]:
    """Of all mounted revisions on this engine."""
    listed = engine().get("/volumes")["Volumes"] or ()
    return {volume["Name"] for volume in listed if ".d" in volume["Name"]}


def cost_of(run: dict[str, Any], stage: str) -> dict[str, Any]:
    (found,) = [cost for cost in run["costs"] if cost["stage"] == stage]
    return dict(found)


def test_a_run_reads_its_dataset_and_its_cost_is_told(daemon: Daemon, tmp_path: Path) -> None:
    revision = pushed(daemon, write_files(tmp_path / "sets", SETS), "alice/told")
    mounts = [{"revision": revision, "target": "/data/x"}]
    run_id = daemon.sh("cat /data/x/part0/f7.csv; touch /data/x/new", mounts=mounts)
    run = daemon.wait(run_id)
    assert run["state"] == "Failed"
    assert "row 7" in daemon.console(run_id)
    assert "Read-only" in daemon.console(run_id)
    cost = cost_of(run, "datasets")
    assert cost["files_fetched"] + cost["files_from_cache"] == 501
    assert cost_of(run, "prepare")["files_fetched"] == 0


def test_a_dataset_that_is_not_there_is_told_with_its_place(daemon: Daemon) -> None:
    mounts = [{"revision": "sha256:" + "0" * 64, "target": "/data/x"}]
    run = daemon.wait(daemon.sh("true", mounts=mounts))
    assert (run["state"], run["reason"]) == ("Error", "revision_not_found")
    assert "/data/x" in run["explanation"]["detail"]


def test_executorctl_mounts_a_revision(daemon: Daemon, tmp_path: Path) -> None:
    revision = pushed(daemon, write_files(tmp_path / "sets", {"a": "from the set\n"}), "alice/ctl")
    done = executorctl(daemon, "run", "--mount", f"{revision}:/sets", "--", "cat", "/sets/a")
    assert (done.returncode, done.stdout) == (0, "from the set\n"), done.stderr


def test_a_killed_daemon_adopts_and_then_removes_the_volumes_of_its_runs(tmp_path: Path) -> None:
    with running_daemon() as daemon:
        before = write_files(tmp_path / "sets", SETS)
        one = pushed(daemon, before, "alice/sets")
        (before / "part0/f0.csv").write_text("changed\n")
        two = pushed(daemon, before, "alice/sets")
        daemon.wait(daemon.sh("true", mounts=[{"revision": one, "target": "/d"}]))
        mounts = [{"revision": two, "target": "/d"}]
        held = volumes()
        run_id = daemon.sh("cat /d/part0/f0.csv; sleep 4; cat /d/part0/f7.csv", mounts=mounts)
        daemon.wait_for(run_id, "Running")
        assert len(volumes() - held) == 1
        daemon.kill()
        daemon.start()
        run = daemon.wait(run_id)
        assert run["state"] == "Succeeded", run["explanation"]
        assert daemon.console(run_id) == "changed\nrow 7\n"
        deadline = 200
        while volumes() - held and deadline:
            deadline -= 1
            daemon.get("/healthz")
            subprocess.run(["sleep", "0.05"], check=True)
        assert volumes() == held


def test_a_link_swapped_in_before_the_start_is_not_followed(tmp_path: Path) -> None:
    with running_daemon() as daemon:
        inside = daemon.root / "data" / "set"
        inside.mkdir()
        (inside / "mine").write_text("mine\n")
        slots = [daemon.sh("sleep 3") for _ in range(8)]
        mounts = [{"source": str(inside), "target": "/data"}]
        run_id = daemon.sh("ls -a /data", mounts=mounts)
        assert daemon.run(run_id)["state"] == "Queued"
        inside.rename(daemon.root / "data" / "aside")
        inside.symlink_to(daemon.root / "state")
        run = daemon.wait(run_id)
        assert (run["state"], run["reason"]) == ("Error", "mount_unusable")
        assert "replaced by a link" in run["explanation"]["detail"]
        assert daemon.console(run_id) == ""
        for slot in slots:
            daemon.wait(slot)

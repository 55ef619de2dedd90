"""Workspaces mounted by the real engine: what a container does, and what is kept of it."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executord.engine.docker import DockerEngine
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import ContainerSpec, Kept, Prepared
from tests.fakes.files import (
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)

IMAGE = "executord-test/busybox:1"
USER = (1000, 1000)
PROJECT = {
    "a.txt": "a",
    "twin.txt": "a",
    "data/one.csv": "1",
    "data/two.csv": "2",
    "src/deep/x.py": "x",
    ".dominoignore": "*.tmp\n/scratch/\n",
}


@dataclass
class Node:
    """A file cache on the real engine, and a container run in its workspace."""

    engine: DockerEngine
    files: ProjectFiles
    store: Store
    root: Path
    instance: str

    async def prepare(self, run_id: str, revision: str) -> Prepared:
        return await self.files.prepare(run_id, revision, ignore_progress)

    async def execute(self, prepared: Prepared, script: str) -> str:
        """The container's output; it must end with 0."""
        name = f"executord-{self.instance}-{uuid.uuid4().hex[:8]}"
        spec = ContainerSpec(
            name=name,
            image=IMAGE,
            command=("sh", "-c", f"{script}; exec 2>&1"),
            env={},
            working_dir="/mnt",
            volume=prepared.workspace.volume,
            user=f"{USER[0]}:{USER[1]}",
            network="none",
            cpus=1.0,
            memory_bytes=128 << 20,
            pids_limit=64,
        )
        container = await self.engine.create_container(spec)
        try:
            async with self.engine.watch_exit(container) as ended:
                await self.engine.start_container(container)
                await asyncio.wait_for(ended(), 30)
            facts = await self.engine.inspect_container(container)
            assert facts is not None
            log = Path(facts.log_path)
            output = await asyncio.to_thread(log.read_text) if facts.log_path else ""
            assert facts.exit_code == 0, output
            return output
        finally:
            await self.engine.remove_container(container)

    async def keep(self, run_id: str, prepared: Prepared) -> Kept:
        run = ended_run(run_id, prepared.workspace)
        return await self.files.keep(run, ignore_progress)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    engine = DockerEngine(url=url, deadline_seconds=30.0)
    await engine.open()
    instance = uuid.uuid4().hex[:8]
    store = new_store(tmp_path / "store")
    try:
        async with opened(
            tmp_path / "state", store, volumes=engine, user=USER, instance=instance
        ) as files:
            yield Node(engine, files, store, tmp_path, instance)
            for path in (tmp_path / "state" / "runs").iterdir():
                await files.discard(path.name, keep_workspace=False)
        assert not await engine.list_volumes({"executord.instance": instance})
    finally:
        await engine.close()


async def one_run(node: Node, script: str) -> tuple[Kept, dict[str, str]]:
    """Push PROJECT, run `script` in it, keep; gives what was kept and the new revision's files."""
    pushed = push(node.store, write_files(node.root / "project", PROJECT))
    prepared = await node.prepare("r-1", pushed.revision)
    await node.execute(prepared, script)
    kept = await node.keep("r-1", prepared)
    revision = kept.result.revision or pushed.revision
    again = await node.prepare("r-2", revision)
    await node.execute(again, "true")
    tree = again.workspace.tree.removeprefix("sha256:")
    return kept, contents(node.root / "state" / "snapshots-v1" / tree / "root")


async def test_a_container_sees_the_project_and_its_changes_become_a_revision(node: Node) -> None:
    kept, files = await one_run(
        node,
        "test $(cat a.txt) = a && echo changed > a.txt && rm data/one.csv && mkdir -p results/sub "
        "&& echo r > results/sub/r.txt && chmod +x src/deep/x.py && ln -s a.txt link "
        "&& echo no > no.tmp && mkdir scratch && echo no > scratch/file",
    )
    assert kept.result.head == "moved"
    assert (kept.result.added, kept.result.changed, kept.result.deleted) == (2, 2, 1)
    assert files == {
        ".dominoignore": "*.tmp\n/scratch/\n",
        "a.txt": "changed\n",
        "data/": "",
        "data/two.csv": "2",
        "link": "-> a.txt",
        "results/": "",
        "results/sub/": "",
        "results/sub/r.txt": "r\n",
        "src/": "",
        "src/deep/": "",
        "src/deep/x.py": "x",
        "twin.txt": "a",
    }


async def test_a_replaced_directory_has_only_what_was_put_into_it_again(node: Node) -> None:
    kept, files = await one_run(
        node, "rm -r data src && mkdir data && echo 3 > data/three.csv && echo now a file > src"
    )
    assert kept.result.head == "moved"
    assert files["data/three.csv"] == "3\n"
    assert "data/one.csv" not in files
    assert files["src"] == "now a file\n"
    assert (kept.result.added, kept.result.deleted) == (2, 3)


async def test_files_of_equal_content_can_be_copied_and_moved_over_each_other(node: Node) -> None:
    kept, files = await one_run(node, "cp a.txt twin.txt && mv twin.txt a.txt")
    assert kept.result.deleted == 1
    assert "twin.txt" not in files
    assert files["a.txt"] == "a"


async def test_a_run_that_only_touches_files_changes_nothing(node: Node) -> None:
    kept, _ = await one_run(node, "touch a.txt && cat a.txt > copy && cat copy > a.txt && rm copy")
    assert kept.result.head == "unchanged"
    assert kept.result.revision == ""


async def test_the_snapshot_below_a_run_stays_as_it_was(node: Node) -> None:
    pushed = push(node.store, write_files(node.root / "project", PROJECT))
    prepared = await node.prepare("r-1", pushed.revision)
    await node.execute(
        prepared, "for f in $(find . -type f); do echo bad > $f; done; chmod -R 777 ."
    )
    again = await node.prepare("r-2", pushed.revision)
    assert again.workspace.way == "snapshot"
    await node.execute(again, "test $(cat a.txt) = a && test $(cat src/deep/x.py) = x")


async def test_a_run_without_files_starts_empty_and_what_it_writes_is_kept(node: Node) -> None:
    prepared = await node.prepare("r-1", "")
    assert prepared.workspace.way == "empty"
    await node.execute(prepared, 'test -z "$(ls -A)" && echo new > new.txt')
    kept = await node.keep("r-1", prepared)
    assert kept.result.head == "moved"
    assert kept.result.added == 1


async def test_what_cannot_be_stored_is_named_and_never_followed(node: Node) -> None:
    kept, files = await one_run(
        node,
        "mkfifo pipe && ln -s /etc/passwd secret && ln -s / root && rm -r data && ln -s src data",
    )
    assert [line.split(":")[0] for line in kept.result.skipped] == ["pipe"]
    assert files["secret"] == "-> /etc/passwd"
    assert files["root"] == "-> /"
    assert files["data"] == "-> src"


async def test_three_hundred_directories_deep_is_kept_and_comes_back(node: Node) -> None:
    prepared = await node.prepare("r-1", "")
    await node.execute(
        prepared,
        "i=0; while [ $i -lt 300 ]; do mkdir ddddddd && cd ddddddd || exit 9; i=$((i+1)); done; "
        "echo bottom > bottom",
    )
    kept = await node.keep("r-1", prepared)
    assert (kept.result.added, kept.result.skipped) == (1, ())
    again = await node.prepare("r-2", kept.result.revision)
    await node.execute(again, "test $(find . -name bottom | tr -cd / | wc -c) = 301")


async def test_a_name_that_is_not_utf8_survives(node: Node) -> None:
    kept, files = await one_run(node, "echo x > $(printf 'caf\\351')")
    assert kept.result.added == 1
    assert files[os.fsdecode(b"caf\xe9")] == "x\n"


async def test_what_a_live_run_has_changed_so_far_can_be_listed(node: Node) -> None:
    pushed = push(node.store, write_files(node.root / "project", PROJECT))
    prepared = await node.prepare("r-1", pushed.revision)
    await node.execute(prepared, "echo b > a.txt; echo c > c.txt; rm -r data; touch twin.txt")
    changes = await node.files.changes(ended_run("r-1", prepared.workspace))
    assert [(change.kind, change.path) for change in changes] == [
        ("changed", "a.txt"),
        ("added", "c.txt"),
        ("deleted", "data/one.csv"),
        ("deleted", "data/two.csv"),
    ]


async def test_of_two_runs_from_one_base_the_second_is_kept_beside_the_head(node: Node) -> None:
    pushed = push(node.store, write_files(node.root / "project", PROJECT))
    first = await node.prepare("r-1", pushed.revision)
    second = await node.prepare("r-2", pushed.revision)
    await asyncio.gather(
        node.execute(first, "echo first > a.txt"), node.execute(second, "echo second > a.txt")
    )
    one, two = await node.keep("r-1", first), await node.keep("r-2", second)
    assert (one.result.head, two.result.head) == ("moved", "conflict")
    assert node.store.head("alice/churn") == one.result.revision
    assert node.store.run_revision("alice/churn", "r-2") == two.result.revision
    assert node.store.revision(two.result.revision).parent == pushed.revision


async def test_after_discarding_neither_volume_nor_workspace_is_left(node: Node) -> None:
    prepared = await node.prepare("r-1", "")
    await node.execute(prepared, "echo x > x")
    await node.files.discard("r-1", keep_workspace=False)
    await node.files.discard("r-1", keep_workspace=False)
    assert not (node.root / "state" / "runs" / "r-1").exists()
    assert not await node.engine.list_volumes({"executord.instance": node.instance})


async def test_preparing_again_gives_a_fresh_workspace(node: Node) -> None:
    first = await node.prepare("r-1", "")
    await node.execute(first, "echo left > left")
    again = await node.prepare("r-1", "")
    assert again.workspace.volume == first.workspace.volume
    await node.execute(again, "test ! -e left")

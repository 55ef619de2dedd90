"""A run on a layer, mounted by the real engine: it sees the whole tree, and may change it all."""

import asyncio
import hashlib
import os
import uuid
from pathlib import Path

from executord.engine.docker import DockerEngine
from executord.files.project_files import ProjectFiles
from executord.ports import ContainerSpec, Prepared
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
PROJECT = {f"d{n}/f{m}": f"{n}-{m}" for n in range(20) for m in range(20)}


async def execute(engine: DockerEngine, instance: str, prepared: Prepared, script: str) -> str:
    """The container's output; it must end with 0."""
    container = await engine.create_container(
        ContainerSpec(
            name=f"executord-{instance}-{uuid.uuid4().hex[:8]}",
            image=IMAGE,
            command=("sh", "-c", script),
            env={},
            working_dir="/mnt",
            volume=prepared.workspace.volume,
            user=f"{USER[0]}:{USER[1]}",
            network="none",
            cpus=1.0,
            memory_bytes=128 << 20,
            pids_limit=64,
        )
    )
    try:
        async with engine.watch_exit(container) as ended:
            await engine.start_container(container)
            await asyncio.wait_for(ended(), 30)
        facts = await engine.inspect_container(container)
        assert facts is not None
        output = await asyncio.to_thread(Path(facts.log_path).read_text)
        assert facts.exit_code == 0, output
        return output
    finally:
        await engine.remove_container(container)


def sums(project: Path) -> str:
    """What `sha256sum` prints of all files, in order."""
    lines = [
        f"{hashlib.sha256(text.encode()).hexdigest()}  ./{name}"
        for name, text in contents(project).items()
        if not name.endswith("/") and not text.startswith("-> ")
    ]
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


async def change_and_run(
    engine: DockerEngine, files: ProjectFiles, instance: str, root: Path
) -> None:
    project = write_files(root / "project", PROJECT)
    store = new_store(root / "store")
    first = await files.prepare("r-0", push(store, project).revision, ignore_progress)
    assert first.cost.way == "farm"
    for number in range(1, 4):
        write_files(project, {f"d{number}/f1": f"changed {number}", f"new{number}/x": "3-3"})
        (project / f"d{number}/f2").unlink()
        (project / f"d{number}/link").symlink_to("f3")
        (project / f"d{number}/f4").chmod(0o755)
        if number == 2:
            for file in (project / "d9").iterdir():
                file.unlink()
            (project / "d9").rmdir()
            (project / "d9").write_text("now a file")
        pushed = push(store, project)
        prepared = await files.prepare(f"r-{number}", pushed.revision, ignore_progress)
        assert prepared.cost.way == "layer", prepared.cost
        assert "laid over" in prepared.cost.why
        output = await execute(
            engine,
            instance,
            prepared,
            "find . -type f | xargs sha256sum | sort | sha256sum; "
            f"test -x d{number}/f4 && test ! -x d{number}/f5 && test -L d{number}/link && "
            f"cp d3/f3 new{number}/x && mv new{number}/x d3/f3 && rm -r d1 && mkdir d1 && "
            f'test -z "$(ls -A d1)" && echo mine > d{number}/f1',
        )
        assert sums(project) in output
        kept = await files.keep(ended_run(f"r-{number}", prepared.workspace), ignore_progress)
        assert (kept.result.head, kept.result.skipped) != ("unchanged", ())
        again = await files.prepare("r-9", pushed.revision, ignore_progress)
        assert again.cost.way == "snapshot"
        output = await execute(
            engine, instance, again, "find . -type f | xargs sha256sum | sort | sha256sum"
        )
        assert sums(project) in output, "what a run does to a layer's files is its own"
        await files.discard("r-9", keep_workspace=False)


async def test_a_run_on_a_layer_sees_the_whole_tree_and_changes_its_own_copy_alone(
    tmp_path: Path,
) -> None:
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    engine = DockerEngine(url=url, deadline_seconds=30.0)
    await engine.open()
    instance = uuid.uuid4().hex[:8]
    try:
        async with opened(
            tmp_path / "state",
            f"file://{tmp_path}/store",
            volumes=engine,
            user=USER,
            instance=instance,
        ) as files:
            new_store(tmp_path / "store")
            try:
                await change_and_run(engine, files, instance, tmp_path)
            finally:
                for path in (tmp_path / "state" / "runs").iterdir():
                    await files.discard(path.name, keep_workspace=False)
    finally:
        await engine.close()

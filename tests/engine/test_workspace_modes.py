"""Every way of making a run's directory, with real containers at work in it."""

import asyncio
import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.engine.docker import DockerEngine
from executord.files.client.pull import pull_revision
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import ContainerSpec, Prepared, WorkspaceMode
from tests.fakes.files import (
    contents,
    ended_run,
    ignore_progress,
    new_store,
    opened,
    push,
    write_files,
)
from tests.fakes.workspace_edits import EDITS, WRITABLE, described, make_project
from tests.harness.file_systems import file_system

BUSYBOX = "executord-test/busybox:1"
PYTHON = "executord-test/python:3.11"
USER = 1000
MODES: tuple[WorkspaceMode, ...] = ("overlay", "reflink", "hardlink", "copy")


@dataclass
class Node:
    engine: DockerEngine
    files: ProjectFiles
    store: Store
    root: Path
    instance: str

    async def prepare(self, run_id: str, revision: str) -> Prepared:
        return await self.files.prepare(run_id, revision, ignore_progress)

    async def create(self, prepared: Prepared, *command: str, image: str = BUSYBOX) -> str:
        spec = ContainerSpec(
            name=f"executord-{self.instance}-{uuid.uuid4().hex[:8]}",
            image=image,
            command=command,
            env={},
            working_dir="/mnt",
            volume=prepared.workspace.volume,
            user=f"{USER}:{USER}",
            network="none",
            cpus=1.0,
            memory_bytes=256 << 20,
            pids_limit=64,
        )
        return await self.engine.create_container(spec)

    async def execute(self, prepared: Prepared, *command: str, image: str = BUSYBOX) -> str:
        """What it printed; it must end with 0."""
        container = await self.create(prepared, *command, image=image)
        try:
            async with self.engine.watch_exit(container) as ended:
                await self.engine.start_container(container)
                await asyncio.wait_for(ended(), 60)
            facts = await self.engine.inspect_container(container)
            assert facts is not None
            records = await asyncio.to_thread(Path(facts.log_path).read_text)
            output = "".join(json.loads(record)["log"] for record in records.splitlines())
            assert facts.exit_code == 0, output
            return output
        finally:
            await self.engine.remove_container(container)

    def blobs(self) -> dict[str, tuple[int, int, int, str]]:
        """Every blob: its mode, who owns it, and what it really holds."""
        found = {}
        for folder in ("blobs-v1", "blobs-ro-v1"):
            for path in (self.root / "state" / folder).glob("*/*"):
                facts = path.stat()
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[path.name] = (facts.st_mode, facts.st_uid, facts.st_gid, digest)
        return found


@contextmanager
def place(mode: WorkspaceMode, tmp_path: Path) -> Iterator[Path]:
    if mode != "reflink":
        yield tmp_path
        return
    with file_system(tmp_path / "xfs", "xfs") as root:
        yield root


@pytest.fixture(params=MODES)
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    engine = DockerEngine(
        url=os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"), deadline_seconds=30.0
    )
    await engine.open()
    instance = uuid.uuid4().hex[:8]
    with place(request.param, tmp_path) as root:
        store = new_store(root / "store")
        try:
            async with opened(
                root / "state",
                store,
                volumes=engine,
                user=(USER, USER),
                instance=instance,
                mode=request.param,
                writable=WRITABLE,
            ) as files:
                yield Node(engine, files, store, root, instance)
                for path in list((root / "state" / "runs").iterdir()):
                    await files.discard(path.name, keep_workspace=False)
            assert not await engine.list_volumes({"executord.instance": instance})
        finally:
            await engine.close()


async def test_what_containers_do_comes_back_as_they_left_it(node: Node) -> None:
    """Every edit in a directory of its own, by one container; skipped are things, not places."""
    project = node.root / "project"
    for number in range(len(EDITS)):
        make_project(project / str(number))
    before = described(project / "0")
    pushed = push(node.store, project)
    prepared = await node.prepare("r-1", pushed.revision)
    script = "\n".join(
        f"( cd {number} && {edit.script.replace(';', ' &&')} ) || exit {number + 1}"
        if "while" not in edit.script
        else f"( cd {number}; {edit.script} ) || exit {number + 1}"
        for number, edit in enumerate(EDITS)
    )
    await node.execute(prepared, "sh", "-c", script)
    kept = await node.files.keep(ended_run("r-1", prepared.workspace), ignore_progress)
    result = kept.result
    sums = [sum(edit.counts[kind] for edit in EDITS) for kind in range(3)]
    assert [result.added, result.changed, result.deleted] == sums
    assert sorted(line.split(":")[0] for line in result.skipped) == sorted(
        f"{number}/{path}" for number, edit in enumerate(EDITS) for path in edit.skips
    )
    pulled = node.root / "pulled"
    await asyncio.to_thread(pull_revision, node.store, result.revision, pulled)
    for number, edit in enumerate(EDITS):
        assert described(pulled / str(number)) == edit.expected(before), edit.name


HOSTILE = """
import ctypes, fcntl, mmap, os

def tried(work, *arguments):
    try:
        work(*arguments)
    except OSError:
        pass

def write(name, flags):
    fd = os.open(name, flags)
    try:
        os.write(fd, b"bad bytes")
    finally:
        os.close(fd)

def mapped(name, flags, access):
    fd = os.open(name, flags)
    try:
        with mmap.mmap(fd, 0, access=access) as view:
            view[0:1] = b"!"
    finally:
        os.close(fd)

def with_descriptor(name, work):
    fd = os.open(name, os.O_RDONLY)
    try:
        tried(work, fd)
    finally:
        os.close(fd)

def reopened(fd):
    write(f"/proc/self/fd/{fd}", os.O_WRONLY)

def attributes(fd):
    fcntl.ioctl(fd, 0x40086602, bytes(8))  # FS_IOC_SETFLAGS

def linked(name):
    os.link(name, name + ".link")
    write(name + ".link", os.O_WRONLY)

def by_another_name(name):
    os.rename(name, name + ".moved")
    tried(write, name + ".moved", os.O_WRONLY | os.O_TRUNC)
    os.rename(name + ".moved", name)

def punched(name):
    fd = os.open(name, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).fallocate(fd, 3, 0, 1) != 0:
            raise OSError
    finally:
        os.close(fd)

names = [os.path.join(top, name) for top, _, found in os.walk(".") for name in found]
names = [name for name in names if not os.path.islink(name)]
assert len(names) == 9, names
for name in names:
    for mode in (0o777, 0o4777, 0o000):
        tried(os.chmod, name, mode)
        tried(os.chmod, name, 0o755)
    tried(os.chown, name, 1000, 1000)
    tried(os.chown, name, 0, 0)
    tried(os.truncate, name, 0)
    tried(os.utime, name, (0, 0))
    tried(os.setxattr, name, "user.bad", b"bad")
    tried(os.removexattr, name, "user.overlay.opaque")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC):
        tried(write, name, flags)
    tried(mapped, name, os.O_RDWR, mmap.ACCESS_WRITE)
    for work in (
        lambda fd: os.fchmod(fd, 0o666),
        lambda fd: os.fchown(fd, 1000, 1000),
        lambda fd: os.ftruncate(fd, 0),
        reopened,
        attributes,
    ):
        with_descriptor(name, work)
    tried(punched, name)
    tried(linked, name)
    tried(by_another_name, name)
for top, directories, _ in os.walk("."):
    tried(os.chmod, top, 0o777)
print("tried", len(names))
"""


async def test_no_container_can_write_what_another_run_will_get(node: Node) -> None:
    project = make_project(node.root / "project")
    pushed = push(node.store, project)
    first = await node.prepare("r-1", pushed.revision)
    before = node.blobs()
    assert len(before) == 7
    output = await node.execute(first, "python3", "-c", HOSTILE, image=PYTHON)
    assert "tried 9" in output
    assert node.blobs() == before
    second = await node.prepare("r-2", pushed.revision)
    listing = "find . -type f | sort | xargs -n 1 md5sum"
    third = await node.prepare("r-3", pushed.revision)
    seen = await node.execute(second, "sh", "-c", listing)
    for name, what in contents(project).items():
        if not name.endswith("/") and not what.startswith("-> "):
            assert hashlib.md5(what.encode()).hexdigest() + f"  ./{name}" in seen
    assert seen == await node.execute(third, "sh", "-c", listing)


async def test_two_runs_of_one_revision_do_not_see_each_other(node: Node) -> None:
    pushed = push(node.store, make_project(node.root / "project"))
    first = await node.prepare("r-1", pushed.revision)
    second = await node.prepare("r-2", pushed.revision)
    await asyncio.gather(
        node.execute(
            first, "sh", "-c", "echo 1 >> w/edit.txt; rm a.txt; sleep 0.3; test -e run.sh"
        ),
        node.execute(
            second, "sh", "-c", "rm run.sh; sleep 0.3; test -e a.txt && grep -v 1 w/edit.txt"
        ),
    )


async def test_a_live_container_is_known_to_see_its_directory(node: Node) -> None:
    prepared = await node.prepare("r-1", "")
    container = await node.create(prepared, "sleep", "60")
    try:
        await node.engine.start_container(container)
        facts = await node.engine.inspect_container(container)
        assert facts is not None
        await node.files.check_mounted("r-1", facts.pid)
        await node.prepare("r-2", "")
        with pytest.raises(FaultError, match="without the run's working directory") as caught:
            await node.files.check_mounted("r-2", facts.pid)
        assert caught.value.fault.reason is Reason.WORKSPACE_FAILED
    finally:
        await node.engine.remove_container(container)


async def test_a_volume_that_was_pruned_and_made_anew_is_not_taken_for_the_runs(
    node: Node,
) -> None:
    """The engine makes an empty one of that name as soon as anybody mentions it."""
    prepared = await node.prepare("r-1", "")
    volume = prepared.workspace.volume
    await node.engine.remove_volume(volume)
    command = ["docker", "volume", "create", "--label", f"executord.instance={node.instance}"]
    await asyncio.to_thread(subprocess.run, [*command, volume], check=True, capture_output=True)
    with pytest.raises(FaultError, match="an empty one took its place") as caught:
        await node.create(prepared, "true")
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED


async def test_a_container_starts_on_nothing_else_than_the_runs_directory(node: Node) -> None:
    prepared = await node.prepare(
        "r-1", push(node.store, write_files(node.root / "p", {"x": "x"})).revision
    )
    home = node.root / "state" / "runs" / "r-1"
    home.rename(home.with_name("r-elsewhere"))
    try:
        container = await node.create(prepared, "true")
        with pytest.raises(FaultError) as caught:
            await node.engine.start_container(container)
        assert caught.value.fault.reason is Reason.WORKSPACE_FAILED
        await node.engine.remove_container(container)
    finally:
        home.with_name("r-elsewhere").rename(home)

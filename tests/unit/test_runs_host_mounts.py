"""What a run may mount of its node, asked for by somebody who means no good."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Mount
from executord.runs.context import RunRules
from executord.runs.host_mounts import allowed_mounts, still_allowed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed root with something in it, beside what nobody may see."""
    (tmp_path / "sets" / "churn").mkdir(parents=True)
    (tmp_path / "sets" / "one.csv").write_text("1")
    (tmp_path / "state" / "blobs-v1").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    return tmp_path


def rules(root: Path, **changes: object) -> RunRules:
    settings: dict[str, object] = {
        "node": "n",
        "instance": "0123abcd",
        "working_dir": "/mnt",
        "user": (1000, 1000),
        "network": "none",
        "pids_limit": 100,
        "stop_grace_seconds": 1.0,
        "console_limit_bytes": 1 << 20,
        "tiers": {},
        "allowed_mounts": (root / "sets",),
        "private_paths": (root / "state", root / "engine.sock"),
        **changes,
    }
    return RunRules(**settings)  # type: ignore[arg-type]


def mount(source: object, target: str = "/data") -> Mount:
    return Mount(source=str(source), target=target)


async def refused(root: Path, wanted: Mount, **changes: object) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await allowed_mounts((wanted,), rules(root, **changes))
    assert caught.value.code is Refusal.MOUNT_NOT_ALLOWED
    return caught.value


async def test_a_directory_and_a_file_below_a_root_are_mounted(root: Path) -> None:
    wanted = (mount(root / "sets/churn"), mount(root / "sets/one.csv", "/one.csv"))
    assert await allowed_mounts(wanted, rules(root)) == wanted
    assert await still_allowed(wanted, rules(root)) == wanted


async def test_a_link_below_a_root_is_mounted_as_what_it_stands_for(root: Path) -> None:
    (root / "sets/latest").symlink_to("churn")
    (made,) = await allowed_mounts((mount(root / "sets/latest"),), rules(root))
    assert made.source == str(root / "sets/churn")


@pytest.mark.parametrize("way", ["..", "link", "link above", "nothing"])
async def test_nothing_leads_out_of_a_root(root: Path, way: str) -> None:
    (root / "sets/out").symlink_to(root / "other")
    (root / "sets/up").symlink_to("..")
    sources = {
        "..": f"{root}/sets/../other",
        "link": f"{root}/sets/out",
        "link above": f"{root}/sets/up/other",
        "nothing": f"{root}/sets/up/no-such-thing",
    }
    error = await refused(root, mount(sources[way]))
    assert "lies outside the roots" in error.detail
    assert error.pointer == "/mounts/0/source"


async def test_whether_something_outside_is_there_is_not_told(root: Path) -> None:
    here = await refused(root, mount(root / "other"))
    gone = await refused(root, mount(root / "nobody"))
    assert here.detail.replace("other", "X") == gone.detail.replace("nobody", "X")


async def test_a_root_that_is_itself_a_link_does_not_open_the_state_directory(root: Path) -> None:
    (root / "shared").symlink_to(root)
    allowed = (root / "shared",)
    for source in ("shared/state", "shared/state/blobs-v1", "shared"):
        error = await refused(root, mount(root / source), allowed_mounts=allowed)
        assert "belongs to the node itself" in error.detail


@pytest.fixture
def listening(root: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "engine.sock"))
        yield server


async def test_no_way_leads_to_the_engines_socket(root: Path, listening: socket.socket) -> None:
    os.link(root / "engine.sock", root / "sets/hard")
    (root / "sets/soft").symlink_to(root / "engine.sock")
    assert (
        "neither a directory nor a file" in (await refused(root, mount(root / "sets/hard"))).detail
    )
    assert "outside the roots" in (await refused(root, mount(root / "sets/soft"))).detail
    allowed = (root,)
    for source in (root / "engine.sock", root):
        error = await refused(root, mount(source), allowed_mounts=allowed)
        assert "belongs to the node itself" in error.detail


async def test_pipes_and_devices_are_no_data(root: Path) -> None:
    os.mkfifo(root / "sets/pipe")
    assert "neither" in (await refused(root, mount(root / "sets/pipe"))).detail
    if os.geteuid() == 0:
        os.mknod(root / "sets/null", 0o020666, os.makedev(1, 3))
        assert "neither" in (await refused(root, mount(root / "sets/null"))).detail


async def test_a_name_that_is_not_utf8_is_refused_in_words(root: Path) -> None:
    (root / "sets" / os.fsdecode(b"caf\xe9")).mkdir()
    (root / "sets/cafe").symlink_to(os.fsdecode(b"caf\xe9"))
    assert "UTF-8" in (await refused(root, mount(root / "sets/cafe"))).detail


@pytest.mark.parametrize("swapped", ["the directory", "one above"])
async def test_a_link_put_in_the_way_after_acceptance_is_found_at_the_start(
    root: Path, swapped: str
) -> None:
    (root / "sets/a/b").mkdir(parents=True)
    (root / "other/b").mkdir()
    accepted = await allowed_mounts((mount(root / "sets/a/b"),), rules(root))
    if swapped == "the directory":
        (root / "sets/a/b").rmdir()
        (root / "sets/a/b").symlink_to(root / "other")
    else:
        (root / "sets/a").rename(root / "sets/aside")
        (root / "sets/a").symlink_to(root / "other")
    with pytest.raises(FaultError) as caught:
        await still_allowed(accepted, rules(root))
    assert caught.value.fault.reason is Reason.MOUNT_UNUSABLE
    assert "replaced by a link" in caught.value.fault.detail
    assert "/data" in caught.value.fault.detail


async def test_what_is_gone_or_has_become_a_socket_at_the_start_is_told(root: Path) -> None:
    accepted = await allowed_mounts((mount(root / "sets/churn"),), rules(root))
    (root / "sets/churn").rmdir()
    with pytest.raises(FaultError, match="does not exist"):
        await still_allowed(accepted, rules(root))
    os.mkfifo(root / "sets/churn")
    with pytest.raises(FaultError, match="neither a directory nor a file"):
        await still_allowed(accepted, rules(root))


async def test_a_root_that_is_no_longer_allowed_counts_at_the_start(root: Path) -> None:
    accepted = await allowed_mounts((mount(root / "sets/churn"),), rules(root))
    with pytest.raises(FaultError, match="lies outside the roots"):
        await still_allowed(accepted, rules(root, allowed_mounts=(root / "other",)))


@pytest.mark.parametrize(
    "target",
    [
        "/mnt",
        "/mnt/data",
        "/run/secrets",
        "/run/secrets/x",
        "/run",
        "/proc",
        "/proc/sys",
        "/sys/fs",
        "/dev",
        "/dev/shm",
        "/etc",
        "/etc/resolv.conf",
        "/sbin",
    ],
)
async def test_no_target_hides_what_the_run_needs(root: Path, target: str) -> None:
    error = await refused(root, mount(root / "sets/churn", target))
    assert error.pointer == "/mounts/0/target"
    revision = Mount(source="", target=target, revision="sha256:" + "a" * 64)
    assert (await refused(root, revision)).pointer == "/mounts/0/target"


async def test_a_target_above_the_working_directory_is_refused_and_one_beside_it_is_not(
    root: Path,
) -> None:
    error = await refused(root, mount(root / "sets", "/home"), working_dir="/home/project")
    assert "/home/project" in error.detail
    beside = mount(root / "sets", "/home/projects")
    assert await allowed_mounts((beside,), rules(root, working_dir="/home/project")) == (beside,)


async def test_a_revision_needs_no_root(root: Path) -> None:
    revision = Mount(source="", target="/data", revision="sha256:" + "a" * 64)
    assert await allowed_mounts((revision,), rules(root, allowed_mounts=())) == (revision,)
    assert await still_allowed((revision,), rules(root, allowed_mounts=())) == ()

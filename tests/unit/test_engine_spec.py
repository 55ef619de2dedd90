"""What a container is made with: the safe defaults of every run, and nothing from the host."""

import io
import tarfile
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.engine.spec import (
    bind_volume_config,
    container_config,
    dockerfile_context,
    overlay_volume_config,
)
from executord.ports import BindMount, ContainerSpec

MEBIBYTE = 1024 * 1024
SPEC = ContainerSpec(
    name="executord-1",
    image="sha256:1",
    command=("python", "train.py"),
    env={"A": "1", "B": "x=y"},
    working_dir="/mnt",
    volume="executord-r-1",
    user="1000:1000",
    network="bridge",
    cpus=1.5,
    memory_bytes=512 * MEBIBYTE,
    pids_limit=100,
    binds=(BindMount(source="/data", target="/d", read_only=True),),
    labels={"executord.run": "r-1"},
    cgroup_parent="/executord/r-1",
    log_max_bytes=10 * MEBIBYTE,
)


def test_the_whole_body_of_a_run() -> None:
    assert container_config(SPEC) == {
        "Image": "sha256:1",
        "Cmd": ["python", "train.py"],
        "Env": ["A=1", "B=x=y"],
        "WorkingDir": "/mnt",
        "User": "1000:1000",
        "Labels": {"executord.run": "r-1"},
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "AutoRemove": False,
            "Privileged": False,
            "Init": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "NetworkMode": "bridge",
            "RestartPolicy": {"Name": "no"},
            "IpcMode": "private",
            "PidsLimit": 100,
            "Memory": 512 * MEBIBYTE,
            "MemorySwap": 512 * MEBIBYTE,
            "NanoCpus": 1_500_000_000,
            "ShmSize": 256 * MEBIBYTE,
            "Ulimits": [
                {"Name": "nofile", "Soft": 16384, "Hard": 16384},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": "executord-r-1",
                    "Target": "/mnt",
                    "VolumeOptions": {"NoCopy": True},
                },
                {
                    "Type": "bind",
                    "Source": "/data",
                    "Target": "/d",
                    "ReadOnly": True,
                    "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
                },
            ],
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": str(5 * MEBIBYTE), "max-file": "2"},
            },
            "CgroupParent": "/executord/r-1",
        },
    }


def test_gpus_are_asked_for_by_count() -> None:
    spec = ContainerSpec(
        name="a",
        image="b",
        command=("c",),
        env={},
        working_dir="/",
        volume="",
        user="",
        network="none",
        cpus=1,
        memory_bytes=0,
        pids_limit=1,
        gpus=2,
    )
    host = container_config(spec)["HostConfig"]
    assert host["DeviceRequests"] == [{"Count": 2, "Capabilities": [["gpu"]]}]
    assert host["Mounts"] == []
    assert "CgroupParent" not in host
    assert host["LogConfig"] == {"Type": "json-file", "Config": {}}


def _options(lower: list[Path]) -> str:
    config = overlay_volume_config(
        "v", lower=lower, upper=Path("/s/u"), work=Path("/s/w"), labels={"a": "b"}
    )
    assert config["Labels"] == {"a": "b"}
    assert config["DriverOpts"]["type"] == config["DriverOpts"]["device"] == "overlay"
    options: str = config["DriverOpts"]["o"]
    return options


def test_an_overlay_is_stacked_from_the_top_down() -> None:
    assert _options([Path("/s/top"), Path("/s/bottom")]) == (
        "lowerdir=/s/top:/s/bottom,upperdir=/s/u,workdir=/s/w,userxattr,volatile"
    )


@pytest.mark.parametrize(
    "path", ["relative", "/a,b", "/a:b", "/a\\b", "/a\nb", "/a/../b", '/a"b', "/a\0b"]
)
def test_a_path_that_could_change_the_mount_is_refused(path: str) -> None:
    with pytest.raises(FaultError) as caught:
        _options([Path(path)])
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED


@pytest.mark.parametrize("lower", [[], [Path(f"/layers/{'x' * 60}/{n}") for n in range(60)]])
def test_a_mount_that_cannot_be_made_is_refused_beforehand(lower: list[Path]) -> None:
    with pytest.raises(FaultError) as caught:
        _options(lower)
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED


def test_a_whole_directory_is_bound_as_it_is() -> None:
    config = bind_volume_config("v", directory=Path("/s/runs/r/files"), labels={"a": "b"})
    options = {"type": "none", "device": "/s/runs/r/files", "o": "bind"}
    assert config == {
        "Name": "v",
        "Driver": "local",
        "DriverOpts": options,
        "Labels": {"a": "b"},
    }
    with pytest.raises(FaultError) as caught:
        bind_volume_config("v", directory=Path("/s,ro/files"), labels={})
    assert caught.value.fault.reason is Reason.WORKSPACE_FAILED


def test_a_builds_context_is_the_dockerfile_alone() -> None:
    body = dockerfile_context("FROM x\nRUN echo é\n")
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        (entry,) = tar.getmembers()
        assert entry.name == "Dockerfile"
        held = tar.extractfile(entry)
        assert held is not None
        assert held.read().decode() == "FROM x\nRUN echo é\n"

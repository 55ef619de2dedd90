"""Real containers by bare calls to the engine's API, for tests of parts that do not know it."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from executord.ports import ContainerFacts
from tests.setup.docker_http import EngineHttp

BUSYBOX = "executord-test/busybox:1"
PYTHON = "executord-test/python:3.11"


def engine_or_skip() -> EngineHttp:
    """The engine that DOCKER_HOST names; tests of real containers mean nothing without one."""
    host = os.environ.get("DOCKER_HOST")
    if host is None:
        pytest.skip("DOCKER_HOST names no engine; `make test` starts one")
    engine = EngineHttp(Path(host.removeprefix("unix://")))
    assert engine.answers(), f"no engine answers at {host}"
    return engine


class PlainContainer:
    def __init__(self, engine: EngineHttp, container_id: str) -> None:
        self._engine = engine
        self.id = container_id

    def start(self) -> None:
        self._engine.post(f"/containers/{self.id}/start")

    def wait(self) -> None:
        self._engine.post(f"/containers/{self.id}/wait")

    def remove(self) -> None:
        self._engine.delete(f"/containers/{self.id}?force=1")

    def inspect(self) -> dict[str, Any]:
        answer = self._engine.get(f"/containers/{self.id}/json")
        assert isinstance(answer, dict)
        return answer

    @property
    def pid(self) -> int:
        return int(self.inspect()["State"]["Pid"])

    def facts(self) -> ContainerFacts:
        seen = self.inspect()
        return ContainerFacts(
            id=self.id,
            name=seen["Name"].lstrip("/"),
            state=seen["State"]["Status"],
            pid=seen["State"]["Pid"],
            exit_code=seen["State"]["ExitCode"],
            log_path=seen["LogPath"],
        )


@contextmanager
def container(
    engine: EngineHttp,
    *command: str,
    image: str = BUSYBOX,
    cgroup_parent: str = "",
    memory_bytes: int = 256 << 20,
    cpus: float = 0,
    network: str = "none",
    log_max_bytes: int = 0,
) -> Iterator[PlainContainer]:
    """Created, not started; removed at the end."""
    log: dict[str, object] = {"Type": "json-file", "Config": {}}
    if log_max_bytes:
        log["Config"] = {"max-size": str(log_max_bytes), "max-file": "2"}
    body = {
        "Image": image,
        "Cmd": list(command),
        "Labels": {"executord.test": "plain"},
        "HostConfig": {
            "CgroupParent": cgroup_parent,
            "Init": True,
            "NetworkMode": network,
            "Memory": memory_bytes,
            "MemorySwap": memory_bytes,
            "NanoCpus": int(cpus * 1_000_000_000),
            "LogConfig": log,
        },
    }
    name = f"executord-test-{uuid.uuid4().hex[:12]}"
    engine.post(f"/containers/create?name={name}", body)
    made = PlainContainer(engine, engine.get(f"/containers/{name}/json")["Id"])
    try:
        yield made
    finally:
        made.remove()

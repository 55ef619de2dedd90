"""A container of the fake engine."""

import asyncio
from dataclasses import dataclass, field

from executord.ports import ContainerFacts, ContainerSpec, ContainerState
from tests.fakes.engine_programs import Process


@dataclass(slots=True)
class FakeContainer:
    id: str
    spec: ContainerSpec
    log_path: str
    state: ContainerState = "created"
    pid: int = 0
    exit_code: int | None = 0
    oom_killed: bool = False
    error: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    process: Process | None = None
    task: asyncio.Task[None] | None = None
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: set[asyncio.Event] = field(default_factory=set)

    def facts(self) -> ContainerFacts:
        return ContainerFacts(
            id=self.id,
            name=self.spec.name,
            state=self.state,
            pid=self.pid,
            exit_code=self.exit_code if self.state in ("exited", "dead") or self.error else None,
            oom_killed=self.oom_killed,
            error=self.error,
            started_at=self.started_at,
            finished_at=self.finished_at,
            log_path=self.log_path,
            labels=self.spec.labels,
        )

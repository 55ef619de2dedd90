"""What a stage is given: the parts of the daemon, the node's rules for runs, and its own run.

`Tools` are the same for every run. `RunContext` belongs to one: it reports events to the run's
actor and tells a stage what has been asked meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from executord.core.admission import Tier
from executord.core.messages import Event
from executord.core.run import Run
from executord.ports import (
    Clock,
    Consoles,
    Engine,
    Files,
    Images,
    Journal,
    Meters,
    OnProgress,
    Progress,
)
from executord.runs.secrets import SecretFiles
from executord.runs.turns import Turns


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRules:
    """The node's rules for every run, from its configuration.

    Runs may mount what lies below `allowed_mounts`, and never what is, holds or lies below one of
    `private_paths`.
    """

    node: str
    instance: str
    working_dir: str
    user: tuple[int, int]
    network: str
    pids_limit: int
    stop_grace_seconds: float
    console_limit_bytes: int
    tiers: Mapping[str, Tier]
    default_tier: str = ""
    default_image: str = ""
    max_queue: int = 1000
    allowed_mounts: tuple[Path, ...] = ()
    private_paths: tuple[Path, ...] = ()
    boot_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    engine: Engine
    files: Files
    images: Images
    consoles: Consoles
    meters: Meters
    journal: Journal
    clock: Clock
    secrets: SecretFiles
    rules: RunRules
    syncing: Turns = field(default_factory=Turns)


def _nobody_looks(_: Progress) -> None:
    """For a stage that has no progress to show."""


Report = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """`run()` is the run as it is now. `report` returns once the event is durable.

    `ending` is set once the container is to end, whether it has been made or not; `over` once
    its end is certain.
    """

    run: Callable[[], Run]
    report: Report
    on_progress: OnProgress = _nobody_looks
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

"""Containers and volumes that carry our labels and belong to no run: left by nobody, removed."""

from collections.abc import Iterable

import structlog

from executord.core.datasets import run_of_volume
from executord.ports import Engine
from executord.runs.container import RUN_LABEL, container_name, instance_labels
from executord.runs.context import RunRules

log = structlog.get_logger(__name__)


async def remove_orphans(engine: Engine, rules: RunRules, unfinished: Iterable[str]) -> None:
    """Only what this very journal's daemon has made; that of other daemons is never touched."""
    labels = instance_labels(rules)
    known = set(unfinished)
    for container in await engine.list_containers(labels):
        run_id = container.labels.get(RUN_LABEL, "")
        if run_id not in known:
            log.warning("orphan.removed", container=container.name, run_id=run_id)
            await engine.remove_container(container.id)
    names = {container_name(rules, run_id) for run_id in known}
    for volume in await engine.list_volumes(labels):
        if volume not in names and run_of_volume(rules.instance, volume) not in known:
            log.warning("orphan.removed", volume=volume)
            await engine.remove_volume(volume)

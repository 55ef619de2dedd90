"""Revisions that a run mounts read-only, from the same cache as its project's files.

One that is a whole snapshot is mounted as it lies there. One that is a chain of layers becomes a
volume: an overlay of them without anything that could be written.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from executord.core.datasets import volume_name
from executord.core.reasons import Fault, FaultError
from executord.core.run import Dataset, Mount, Stage, StageCost
from executord.files.parts import Parts
from executord.files.progress import relay
from executord.files.system.threads import in_thread
from executord.files.workspace.modes.overlay import Overlay
from executord.ports import OnProgress, Revision

MakeReady = Callable[[str, OnProgress, str], Awaitable[StageCost]]
ReadRevision = Callable[[str], Awaitable[Revision]]


@dataclass(frozen=True, slots=True)
class Readied:
    """`lowers` are the layers of those that need a volume, by its name."""

    datasets: tuple[Dataset, ...] = ()
    cost: StageCost | None = None
    lowers: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.cost.seconds if self.cost else 0.0


class Datasets:
    """`make_ready` makes the files of a tree, that of a revision, ready, and tells the cost."""

    def __init__(self, parts: Parts, read_revision: ReadRevision, make_ready: MakeReady) -> None:
        self._parts = parts
        self._read_revision = read_revision
        self._make_ready = make_ready

    async def ready(self, run_id: str, mounts: Sequence[Mount], on_progress: OnProgress) -> Readied:
        """Each tree is pinned for the run. Raises FaultError, which names the mount's target."""
        wanted = [mount for mount in mounts if mount.revision]
        if not wanted:
            return Readied()
        began = time.monotonic()
        readied: list[Dataset] = []
        costs: list[StageCost] = []
        lowers: dict[str, tuple[Path, ...]] = {}
        for index, mount in enumerate(wanted):
            try:
                tree = (await self._read_revision(mount.revision)).tree
                self._parts.snapshots.pin(tree, run_id)
                costs.append(await self._make_ready(tree, on_progress, mount.revision))
            except FaultError as error:
                raise FaultError(_with_target(error.fault, mount)) from error
            layers = await self._layers(tree, run_id, on_progress)
            volume = ""
            if len(layers) > 1:
                volume = volume_name(self._parts.workspaces.instance, run_id, index)
                lowers[volume] = layers
            source = "" if volume else str(layers[0])
            readied.append(Dataset(target=mount.target, tree=tree, source=source, volume=volume))
        return Readied(tuple(readied), _sum(costs, time.monotonic() - began), lowers)

    async def _layers(self, tree: str, run_id: str, on_progress: OnProgress) -> tuple[Path, ...]:
        """More than one directory only where the engine can put them on top of each other."""
        parts = self._parts
        if not isinstance(parts.workspaces.modes.chosen, Overlay):
            if await in_thread(parts.threads.quick, parts.snapshots.find, tree, "snapshot") is None:
                await parts.builds.build(tree, relay(on_progress), whole=True)
            return (parts.snapshots.lower(tree),)
        return await in_thread(parts.threads.quick, parts.snapshots.lowers, tree, run_id)

    async def make_volumes(self, run_id: str, readied: Readied) -> None:
        """Only once the run's lease names them: what is made can then always be found again."""
        for volume, lower in readied.lowers.items():
            await self._parts.volumes.create_read_only_volume(
                volume, lower=lower, labels=self._parts.workspaces.labels(run_id)
            )


def _with_target(fault: Fault, mount: Mount) -> Fault:
    detail = f"The revision to be mounted at {mount.target} cannot be made ready: {fault.detail}"
    return Fault(fault.reason, detail, {**fault.evidence, "target": mount.target})


def _sum(costs: Sequence[StageCost], seconds: float) -> StageCost:
    """`way` has each way that was taken, once."""
    return StageCost(
        stage=Stage.DATASETS,
        seconds=seconds,
        files_from_cache=sum(cost.files_from_cache for cost in costs),
        bytes_from_cache=sum(cost.bytes_from_cache for cost in costs),
        files_fetched=sum(cost.files_fetched for cost in costs),
        bytes_fetched=sum(cost.bytes_fetched for cost in costs),
        way="+".join(dict.fromkeys(cost.way for cost in costs)),
        why="; ".join(dict.fromkeys(cost.why for cost in costs if cost.why)),
    )

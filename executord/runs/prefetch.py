"""Revisions and images made ready because a dispatcher expects runs that need them.

Jobs live in memory: one that is lost with the daemon costs time, nothing else.
"""

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import structlog

from executord.core.reasons import FaultError, Reason
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Environment
from executord.ports import Clock, Files, Images, Progress
from executord.runs.ahead import fetched_if_missing, ignore_output, ignore_phase

log = structlog.get_logger(__name__)

MAX_LIVE_JOBS = 16
KEPT_JOBS = 32
GRACE_SECONDS = 1800.0
_PARALLEL = 2
PATIENCE_SECONDS = 600.0
_PAUSE_SECONDS = 2.0
_HERE_SECONDS = 10.0
_RETRY_AFTER_SECONDS = 10

ItemState = Literal["waiting", "working", "ready", "failed", "dropped"]
JobState = Literal["working", "ready", "incomplete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchItem:
    """One revision or image. `dropped` was given up for want of room, or because the daemon left.

    `way` says how it came to be ready ("here", "farm", "pulled", …), `detail` why it is not.
    """

    kind: Literal["revision", "image"]
    name: str
    state: ItemState = "waiting"
    way: str = ""
    detail: str = ""
    reason: Reason | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchJob:
    """`held_until` is when what it made ready may be evicted like everything else; None while it
    works.
    """

    id: str
    asked_at: float
    items: tuple[PrefetchItem, ...]
    ended_at: float | None = None
    held_until: float | None = None

    @property
    def state(self) -> JobState:
        if self.ended_at is None:
            return "working"
        return "ready" if all(item.state == "ready" for item in self.items) else "incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchWanted:
    revisions: tuple[str, ...] = ()
    environments: tuple[Environment, ...] = ()


@dataclass(slots=True, eq=False)
class _Live:
    job: PrefetchJob
    wanted: PrefetchWanted
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    def update(self, index: int, **changes: Any) -> None:
        items = list(self.job.items)
        items[index] = replace(items[index], **changes)
        self.job = replace(self.job, items=tuple(items))


class Prefetching:
    """Owns the jobs and what they hold. `why_not` tells what stands against more work now.

    `default_image` is that of an environment which names none.
    """

    def __init__(
        self,
        *,
        files: Files,
        images: Images,
        clock: Clock,
        why_not: Callable[[], str],
        default_image: str = "",
        grace_seconds: float = GRACE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._files = files
        self._images = images
        self._clock = clock
        self._why_not = why_not
        self._default_image = default_image
        self._grace_seconds = grace_seconds
        self._patience_seconds = patience_seconds
        self._jobs: OrderedDict[str, _Live] = OrderedDict()
        self._turns = asyncio.Semaphore(_PARALLEL)
        self._leaving = False

    async def prefetch(self, wanted: PrefetchWanted) -> PrefetchJob:
        """A job that has begun; one that has ended where all of it is here. Raises RefusedError."""
        self._check_may_begin()
        wanted = self._complete(wanted)
        items = [PrefetchItem(kind="revision", name=digest) for digest in wanted.revisions]
        items += [PrefetchItem(kind="image", name=each.image) for each in wanted.environments]
        job = PrefetchJob(
            id=f"p-{secrets.token_hex(6)}", asked_at=self._clock.now(), items=tuple(items)
        )
        live = self._jobs[job.id] = _Live(job, wanted)
        live.task = asyncio.create_task(self._live(live), name=f"prefetch:{job.id}")
        if await self._all_here(wanted):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HERE_SECONDS):
                    await live.ended.wait()
        return live.job

    def jobs(self) -> Sequence[PrefetchJob]:
        """Newest first: those under way, and the last ones that ended."""
        return [live.job for live in reversed(self._jobs.values())]

    async def close(self) -> None:
        """Nothing more is begun, what is under way is given up, and nothing is held any more."""
        self._leaving = True
        await self._end(list(self._jobs.values()))

    # -- asking ------------------------------------------------------------------------------------

    def _check_may_begin(self) -> None:
        if self._leaving:
            raise RefusedError(Refusal.SHUTTING_DOWN, "The daemon is leaving.")
        if sum(not live.ended.is_set() for live in self._jobs.values()) >= MAX_LIVE_JOBS:
            raise RefusedError(
                Refusal.QUEUE_FULL,
                f"{MAX_LIVE_JOBS} prefetches are under way already.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def _complete(self, wanted: PrefetchWanted) -> PrefetchWanted:
        """Each revision once, every environment with an image."""
        environments = []
        for index, environment in enumerate(wanted.environments):
            image = environment.image or self._default_image
            if not image:
                raise RefusedError(
                    Refusal.IMAGE_REQUIRED,
                    "No image is named, and this node has no default.",
                    pointer=f"/images/{index}/image",
                )
            environments.append(fetched_if_missing(replace(environment, image=image)))
        revisions = tuple(dict.fromkeys(wanted.revisions))
        return PrefetchWanted(revisions=revisions, environments=tuple(environments))

    async def _all_here(self, wanted: PrefetchWanted) -> bool:
        try:
            for revision in wanted.revisions:
                if not await self._files.is_here(revision):
                    return False
            for environment in wanted.environments:
                if not await self._images.has(environment):
                    return False
        except FaultError:
            return False  # whoever cannot tell will say so in the job
        return True

    # -- a job's life ------------------------------------------------------------------------------

    async def _live(self, live: _Live) -> None:
        """Work, tell, hold for a while, let go."""
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(live.job.items)):
                    group.create_task(self._make_ready(live, index))
            now = self._clock.now()
            live.job = replace(live.job, ended_at=now, held_until=now + self._grace_seconds)
            live.ended.set()
            log.info("prefetch.ended", job=live.job.id, state=live.job.state)
            self._forget_old()
            await asyncio.sleep(self._grace_seconds)
        finally:
            await asyncio.shield(self._let_go(live))

    async def _make_ready(self, live: _Live, index: int) -> None:
        """Ends in a state of the item, never in an error."""
        try:
            async with self._turns:
                why_not = await self._calm(live, index)
                if why_not:
                    live.update(index, state="dropped", detail=why_not)
                    return
                live.update(index, state="working", detail="")
                way = await self._work(live, index)
            live.update(index, state="ready", way=way, progress=None)
        except FaultError as error:
            dropped = error.fault.reason is Reason.DISK_FULL
            live.update(
                index,
                state="dropped" if dropped else "failed",
                detail=error.fault.detail,
                reason=error.fault.reason,
                progress=None,
            )
            log.info("prefetch.not_ready", job=live.job.id, why=error.fault.detail)
        except Exception:
            log.exception("prefetch.crashed", job=live.job.id)
            live.update(
                index, state="failed", detail="A mistake of the daemon.", reason=Reason.INTERNAL
            )

    async def _calm(self, live: _Live, index: int) -> str:
        """Wait until nothing stands against more work; why that was given up, or ""."""
        gives_up_at = self._clock.monotonic() + self._patience_seconds
        while why_not := self._why_not():
            if self._clock.monotonic() >= gives_up_at:
                return f"given up after {self._patience_seconds:g} s: {why_not}"
            live.update(index, detail=f"paused: {why_not}")
            await asyncio.sleep(min(_PAUSE_SECONDS, self._patience_seconds))
        return ""

    async def _work(self, live: _Live, index: int) -> str:
        def show(progress: Progress) -> None:
            live.update(index, progress=progress)

        holder = _holder(live.job, index)
        revisions = live.wanted.revisions
        if index < len(revisions):
            return (await self._files.ready_ahead(revisions[index], holder, show)).way
        provided = await self._images.provide(
            holder,
            live.wanted.environments[index - len(revisions)],
            on_phase=ignore_phase,
            on_output=ignore_output,
            on_progress=show,
        )
        return provided.costs[-1].way if provided.costs else "local"

    async def _let_go(self, live: _Live) -> None:
        for index in range(len(live.job.items)):
            holder = _holder(live.job, index)
            self._files.let_go(holder)
            if index >= len(live.wanted.revisions):
                with contextlib.suppress(FaultError):
                    await self._images.release(holder)

    def _forget_old(self) -> None:
        """Jobs that ended long ago; what they hold is bounded by that too."""
        ended = [live for live in self._jobs.values() if live.ended.is_set()]
        for live in ended[:-KEPT_JOBS]:
            del self._jobs[live.job.id]
            if live.task is not None and not live.task.done():
                live.task.cancel()

    async def _end(self, lives: Sequence[_Live]) -> None:
        tasks = [live.task for live in lives if live.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _holder(job: PrefetchJob, index: int) -> str:
    return f"prefetch:{job.id}/{index}"

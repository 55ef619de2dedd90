"""Create, start and watch the run's container, or take up the one that is there.

A container is made once: its name comes from the run, and its id is durable before it is started.
What has become of it is never concluded from a stream that ended, only from what the engine says
when it is asked; while the engine does not answer, nothing is concluded at all.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from executord.core.messages import (
    ContainerCreated,
    ContainerEnded,
    ContainerStarted,
    TimeLimitReached,
)
from executord.core.reasons import Fault, FaultError, Reason
from executord.core.run import Container, Evidence, Run, Stage, StageCost, UsageSummary
from executord.ports import ContainerFacts
from executord.runs.container import container_of, container_spec
from executord.runs.context import RunContext, Tools
from executord.runs.patience import until_engine_answers

_COMMAND_FAULTS = {
    Reason.COMMAND_NOT_FOUND: 127,
    Reason.COMMAND_NOT_EXECUTABLE: 126,
    Reason.IMAGE_UNUSABLE: None,
}
_NEVER_RAN = {127: Reason.COMMAND_NOT_FOUND, 126: Reason.COMMAND_NOT_EXECUTABLE}
_LOOKS_FOR_A_START = 10
_START_LOOK_SECONDS = 0.2
_WATCH_PAUSE_SECONDS = 0.02
_ENDED = ("exited", "dead", "removing")


@dataclass(frozen=True, slots=True)
class _End:
    """How it ended: the engine's last word, or why it never began."""

    facts: ContainerFacts | None
    start_fault: Fault | None = None
    never_started: bool = False


async def execute(context: RunContext, tools: Tools) -> ContainerEnded:
    began = tools.clock.monotonic()
    run = context.run()
    name = container_of(run, tools.rules)
    facts = await until_engine_answers(lambda: tools.engine.inspect_container(name))
    if facts is None and run.container is not None:
        return await _ended(context, tools, _End(None), started_in=0.0)
    if facts is None:
        if context.ending.is_set():
            return await _ended(context, tools, _End(None, never_started=True), started_in=0.0)
        facts = await _create(context, tools, name)
    elif facts.state == "created":
        facts = await _settled(tools, facts)
    if facts.state == "created":
        end, started_in = await _start_and_watch(context, tools, facts, began)
    else:
        end, started_in = await _adopt(context, tools, facts), 0.0
    return await _ended(context, tools, end, started_in=started_in)


async def _settled(tools: Tools, facts: ContainerFacts) -> ContainerFacts:
    """An earlier daemon may have asked for the start a moment before it died."""
    if await _has_started(tools, facts.id):
        latest = await until_engine_answers(lambda: tools.engine.inspect_container(facts.id))
        return latest or facts
    return facts


async def _create(context: RunContext, tools: Tools, name: str) -> ContainerFacts:
    """A create whose reply was lost is asked for again: the engine's part finds it by its name."""
    run = context.run()
    spec = await container_spec(run, tools)
    container_id = await until_engine_answers(lambda: tools.engine.create_container(spec))
    container = Container(id=container_id, boot_id=tools.rules.boot_id)
    await context.report(
        ContainerCreated(at=tools.clock.now(), attempt=run.attempt, container=container)
    )
    return ContainerFacts(id=container_id, name=name, state="created")


async def _start_and_watch(
    context: RunContext, tools: Tools, facts: ContainerFacts, began: float
) -> tuple[_End, float]:
    if context.ending.is_set():
        return _End(None, never_started=True), 0.0
    async with tools.engine.watch_exit(facts.id) as ended:
        try:
            await tools.engine.start_container(facts.id)
        except FaultError as error:
            if error.fault.reason in _COMMAND_FAULTS:
                return _End(None, start_fault=error.fault), 0.0
            if not await _has_started(tools, facts.id):
                raise
        started_in = tools.clock.monotonic() - began
        return await _watch(context, tools, facts.id, ended), started_in


async def _has_started(tools: Tools, container: str) -> bool:
    """Whether a start whose reply was lost has had its effect.

    It is waited for, and never asked for again: a second start of a container that has ended
    meanwhile would execute it twice.
    """
    for _ in range(_LOOKS_FOR_A_START):
        facts = await until_engine_answers(lambda: tools.engine.inspect_container(container))
        if facts is None or facts.started_at is not None:
            return True
        await asyncio.sleep(_START_LOOK_SECONDS)
    return False


async def _adopt(context: RunContext, tools: Tools, facts: ContainerFacts) -> _End:
    if facts.state in _ENDED:
        await tools.consoles.collect(context.run().id, facts)
        return _end_told_by(facts)
    if facts.state == "paused":  # an earlier daemon died while it copied the run's files
        await until_engine_answers(lambda: tools.engine.unpause_container(facts.id))
    return await _watch(context, tools, facts.id, _watcher(tools, facts.id))


async def _watch(
    context: RunContext, tools: Tools, container: str, ended: Callable[[], Awaitable[None]]
) -> _End:
    """Until the engine itself says that the container has ended, or that there is none."""
    facts = await until_engine_answers(lambda: tools.engine.inspect_container(container))
    if facts is None:
        return _End(None)
    await _began(context, tools, facts)
    limit = asyncio.create_task(_time_limit(context, tools, facts))
    try:
        while facts.state not in _ENDED:
            await ended()
            latest = await until_engine_answers(lambda: tools.engine.inspect_container(container))
            if latest is None:
                return _End(None)
            facts = latest
            ended = _watcher(tools, container)
        return _end_told_by(facts)
    finally:
        limit.cancel()


def _end_told_by(facts: ContainerFacts) -> _End:
    """A container that ended without ever having started could not execute its command."""
    if facts.started_at is not None:
        return _End(facts)
    reason = _NEVER_RAN.get(facts.exit_code or 0, Reason.ENGINE_REFUSED)
    return _End(facts, start_fault=Fault(reason, facts.error))


def _watcher(tools: Tools, container: str) -> Callable[[], Awaitable[None]]:
    """For a container that runs already: a watch that cannot be had now is tried again."""

    async def wait() -> None:
        async with tools.engine.watch_exit(container) as ended:
            facts = await tools.engine.inspect_container(container)
            if facts is not None and facts.state not in _ENDED:
                await ended()

    async def patiently() -> None:
        await until_engine_answers(wait)
        await asyncio.sleep(
            _WATCH_PAUSE_SECONDS
        )  # a watch that breaks off at once, again and again

    return patiently


async def _began(context: RunContext, tools: Tools, facts: ContainerFacts) -> None:
    run = context.run()
    if facts.pid:
        await tools.files.check_mounted(run.id, facts.pid)
        await tools.meters.start(run.id, facts.pid)
    await tools.consoles.collect(run.id, facts)
    container = Container(id=facts.id, started_at=facts.started_at, boot_id=_boot_of(run, tools))
    if run.container != container:
        await context.report(
            ContainerStarted(at=tools.clock.now(), attempt=run.attempt, container=container)
        )


def _boot_of(run: Run, tools: Tools) -> str:
    return run.container.boot_id if run.container else tools.rules.boot_id


async def _time_limit(context: RunContext, tools: Tools, facts: ContainerFacts) -> None:
    run = context.run()
    limit = run.assignment.run_seconds
    if limit is None or run.time_limit_reached:
        return
    used = tools.clock.now() - (facts.started_at or tools.clock.now())
    await asyncio.sleep(max(0.0, limit - used))
    await context.report(
        TimeLimitReached(
            at=tools.clock.now(),
            attempt=run.attempt,
            grace_seconds=tools.rules.stop_grace_seconds,
        )
    )


async def _ended(
    context: RunContext, tools: Tools, end: _End, *, started_in: float
) -> ContainerEnded:
    context.over.set()
    run = context.run()
    await tools.consoles.drain(run.id)
    usage = await tools.meters.finish(run.id)
    evidence = _evidence(run, tools, end, usage)
    return ContainerEnded(
        at=tools.clock.now(),
        attempt=run.attempt,
        evidence=evidence,
        usage=usage,
        costs=_costs(evidence, started_in),
    )


def _evidence(run: Run, tools: Tools, end: _End, usage: UsageSummary | None) -> Evidence:
    seen = Evidence(
        killed_by_us=run.stop is not None or run.time_limit_reached,
        memory_limit_bytes=_memory_limit(run, tools),
        host_restarted=bool(run.container) and _boot_of(run, tools) != tools.rules.boot_id,
        oom_kills=usage.oom_kills if usage else None,
        memory_peak_bytes=usage.memory_peak_bytes if usage else None,
    )
    if end.start_fault is not None:
        return replace(
            seen,
            exit_code=_COMMAND_FAULTS.get(end.start_fault.reason),
            start_fault=end.start_fault.reason,
            start_error=end.start_fault.detail,
        )
    if end.facts is None:
        return replace(seen, container_missing=not end.never_started)
    return replace(
        seen,
        exit_code=end.facts.exit_code,
        oom_killed=end.facts.oom_killed,
        started_at=end.facts.started_at,
        finished_at=end.facts.finished_at,
    )


def _memory_limit(run: Run, tools: Tools) -> int:
    tier = tools.rules.tiers.get(run.assignment.tier)
    return tier.memory_bytes if tier else 0


def _costs(evidence: Evidence, started_in: float) -> tuple[StageCost, ...]:
    costs: list[StageCost] = []
    if started_in:
        costs.append(StageCost(stage=Stage.START, seconds=started_in))
    if evidence.started_at is not None and evidence.finished_at is not None:
        seconds = max(0.0, evidence.finished_at - evidence.started_at)
        costs.append(StageCost(stage=Stage.RUN, seconds=seconds))
    return tuple(costs)

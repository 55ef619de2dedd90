"""Ask the run's container to end, then kill it, until its end is certain.

Reports nothing: the stage that watches the container tells how it ended.
"""

import asyncio
from functools import partial

import structlog

from executord.core.reasons import FaultError
from executord.runs.container import container_of
from executord.runs.context import RunContext, Tools
from executord.runs.patience import until_engine_answers

log = structlog.get_logger(__name__)

_NOT_YET_STARTED_SECONDS = 0.1
_KILL_AGAIN_SECONDS = 2.0


async def end_container(context: RunContext, tools: Tools, grace_seconds: float) -> None:
    context.ending.set()
    if not await _signalled(context, tools, "SIGTERM"):
        return
    await _over_within(context, grace_seconds)
    while not context.over.is_set():
        await _signalled(context, tools, "SIGKILL")
        await _over_within(context, _KILL_AGAIN_SECONDS)


async def _signalled(context: RunContext, tools: Tools, signal: str) -> bool:
    """False when the end came before the container could be reached."""
    while not context.over.is_set():
        name = container_of(context.run(), tools.rules)
        facts = await until_engine_answers(partial(tools.engine.inspect_container, name))
        if facts is not None and facts.state in ("running", "paused"):
            await _signal(tools, name, signal)
            return True
        await _over_within(context, _NOT_YET_STARTED_SECONDS)
    return False


async def _signal(tools: Tools, name: str, signal: str) -> None:
    """A refusal is no reason to give up: the next signal is sent all the same."""
    try:
        await until_engine_answers(lambda: tools.engine.signal_container(name, signal))
    except FaultError as error:
        log.warning("run.signal_refused", container=name, signal=signal, why=error.fault.detail)


async def _over_within(context: RunContext, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await context.over.wait()
    except TimeoutError:
        return

"""Remove what is left of an ended run outside the daemon's own records."""

import asyncio

import structlog

from executord.core.messages import CleanedUp
from executord.core.reasons import FaultError
from executord.core.run import Stage, StageCost
from executord.ports import DiskFullError
from executord.runs.container import container_of
from executord.runs.context import RunContext, Tools

log = structlog.get_logger(__name__)

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0


async def clean_up(context: RunContext, tools: Tools, *, keep_workspace: bool) -> CleanedUp:
    """Tries again until it is done: until then the run holds its slot."""
    run = context.run()
    began = tools.clock.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            await tools.engine.remove_container(container_of(run, tools.rules))
            await _remove_all(run.id, tools, keep_workspace=keep_workspace)
            break
        except FaultError as error:
            log.warning("run.clean_up_refused", run_id=run.id, detail=error.fault.detail)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
    seconds = tools.clock.monotonic() - began
    return CleanedUp(
        at=tools.clock.now(),
        attempt=run.attempt,
        costs=(StageCost(stage=Stage.CLEAN_UP, seconds=seconds),),
    )


async def _remove_all(run_id: str, tools: Tools, *, keep_workspace: bool) -> None:
    await _keep_series(run_id, tools)
    await tools.meters.release(run_id)
    await tools.consoles.seal(run_id)
    await tools.files.discard(run_id, keep_workspace=keep_workspace)
    await tools.images.release(run_id)
    await tools.secrets.remove(run_id)


async def _keep_series(run_id: str, tools: Tools) -> None:
    series = tools.meters.record(run_id)
    if series is None:
        return
    try:
        await tools.journal.put_fact("usage", run_id, series)
    except DiskFullError:
        log.warning("usage.series_dropped", run_id=run_id, why="the disk is full")

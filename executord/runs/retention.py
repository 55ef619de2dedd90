"""Forgets ended runs and old events, with their consoles, when their time is up."""

import asyncio

import structlog

from executord.core.reasons import FaultError
from executord.ports import Clock, Consoles, DiskFullError, Files, Journal

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 3600.0
_DAY_SECONDS = 86_400.0


class Retention:
    def __init__(
        self,
        *,
        journal: Journal,
        consoles: Consoles,
        clock: Clock,
        files: Files,
        runs_days: float,
        events_days: float,
    ) -> None:
        self._journal = journal
        self._consoles = consoles
        self._clock = clock
        self._files = files
        self._runs_seconds = runs_days * _DAY_SECONDS
        self._events_seconds = events_days * _DAY_SECONDS

    async def run(self) -> None:
        """For ever; its owner cancels it."""
        while True:
            try:
                await self.sweep()
            except (FaultError, DiskFullError) as error:
                log.warning("retention.postponed", why=str(error))
            await asyncio.sleep(_EVERY_SECONDS)

    async def sweep(self) -> None:
        now = self._clock.now()
        kept = [workspace.run_id for workspace in await self._files.workspaces_kept()]
        forgotten = await self._journal.forget_before(
            runs_before=now - self._runs_seconds,
            events_before=now - self._events_seconds,
            spared=kept,  # what they changed can be stored only as long as they are known
        )
        for run_id in forgotten:
            await self._consoles.delete(run_id)
            await self._journal.delete_fact("usage", run_id)
        if forgotten:
            log.info("retention.forgotten", runs=len(forgotten))

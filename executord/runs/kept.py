"""Kept workspaces about which nobody has to decide any more go by themselves.

Those in which nothing was changed, and what a kill left between the record of a later sync and the
removal of the directory. All others stay until somebody stores them or gives them up.
"""

import asyncio
from typing import Protocol

import structlog

from executord.core.reasons import FaultError
from executord.core.refusals import RefusedError
from executord.core.run import Run
from executord.ports import DiskFullError, Files, KeptWorkspace

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 600.0


class Runs(Protocol):
    """The part of the manager that is needed here."""

    async def run(self, run_id: str) -> Run:
        """RefusedError UNKNOWN_RUN."""
        ...

    async def sync(self, run_id: str) -> object:
        """Store what is kept, and record it. RefusedError, FaultError."""
        ...


class Settling:
    def __init__(self, *, files: Files, runs: Runs) -> None:
        self._files = files
        self._runs = runs

    async def run(self) -> None:
        """For ever; its owner cancels it."""
        while True:
            try:
                await self.settle()
            except FaultError as error:
                log.warning("kept_workspaces.not_settled", detail=error.fault.detail)
            await asyncio.sleep(_EVERY_SECONDS)

    async def settle(self) -> None:
        """Raises FaultError where they cannot be looked at."""
        for kept in await self._files.workspaces_kept():
            try:
                await self._settle(kept)
            except (FaultError, RefusedError, DiskFullError) as error:
                log.info("kept_workspace.left", run_id=kept.run_id, why=str(error))

    async def _settle(self, kept: KeptWorkspace) -> None:
        """One of a run that nobody knows stays: it may be all that is left of somebody's work."""
        run = await self._runs.run(kept.run_id)
        if not (run.is_over and run.clean):
            return
        if not run.keeps_workspace:
            await self._files.discard(run.id, keep_workspace=False)
            log.info("kept_workspace.removed", run_id=run.id, why="its files are settled")
        elif kept.is_empty:
            await self._runs.sync(run.id)
            log.info("kept_workspace.removed", run_id=run.id, why="nothing was changed")

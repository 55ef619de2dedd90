"""Make the run's working directory ready."""

from executord.core.messages import FilesReady
from executord.runs.context import RunContext, Tools


async def prepare(context: RunContext, tools: Tools) -> FilesReady:
    run = context.run()
    prepared = await tools.files.prepare(run.id, run.assignment.revision, context.on_progress)
    return FilesReady(
        at=tools.clock.now(),
        attempt=run.attempt,
        workspace=prepared.workspace,
        costs=(prepared.cost,),
    )

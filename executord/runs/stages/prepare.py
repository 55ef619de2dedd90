"""Make the run's working directory ready."""

from executord.core.messages import FilesReady
from executord.runs.context import RunContext, Tools


async def prepare(context: RunContext, tools: Tools) -> FilesReady:
    run = context.run()
    assignment = run.assignment
    prepared = await tools.files.prepare(
        run.id, assignment.revision, context.on_progress, assignment.mounts
    )
    costs = [cost for cost in (prepared.cost, prepared.dataset_cost) if cost is not None]
    return FilesReady(
        at=tools.clock.now(),
        attempt=run.attempt,
        workspace=prepared.workspace,
        costs=tuple(costs),
    )

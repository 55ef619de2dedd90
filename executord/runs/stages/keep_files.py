"""Copy what the run changed back to its project's file store."""

from executord.core.messages import FilesKept
from executord.core.run import Result
from executord.runs.context import RunContext, Tools


async def keep_files(context: RunContext, tools: Tools, *, keep: bool) -> FilesKept:
    async with tools.syncing.of(context.run().id):  # a sync under way comes first
        run = context.run()
        if not keep or run.workspace is None:
            result = Result(head="not_kept")
            return FilesKept(at=tools.clock.now(), attempt=run.attempt, result=result)
        kept = await tools.files.keep(run, context.on_progress)
    return FilesKept(
        at=tools.clock.now(), attempt=run.attempt, result=kept.result, costs=(kept.cost,)
    )

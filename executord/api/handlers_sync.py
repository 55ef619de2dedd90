"""Storing a run's changed files now."""

from executord.api import answers, shown
from executord.api.calls import Call, Reply
from executord.api.wire import NoQuery, SyncWanted
from executord.core.cloudevents import rfc3339


async def sync_run(call: Call[NoQuery, SyncWanted]) -> Reply:
    await call.must_reach_run()
    report = await call.services.manager.sync(call.run_id, discard=call.body.discard)
    return Reply(
        body=answers.SyncAnswer(
            run_id=report.run_id,
            at=rfc3339(report.at),
            mid_run=report.mid_run,
            paused_seconds=report.paused_seconds,
            way=report.way,
            result=shown.result(report.result),
        )
    )

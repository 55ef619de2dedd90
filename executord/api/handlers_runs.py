"""Runs: accept, list, show, stop, and what they changed."""

import asyncio

from executord.api import answers, shown
from executord.api.access import user_name
from executord.api.calls import Call, Reply
from executord.api.checks import draft_of
from executord.api.problems import ProblemError
from executord.api.services import Services
from executord.api.wire import NoQuery, RunsQuery, RunWanted, StopWanted, given
from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Run, StopOrder


async def submit(call: Call[NoQuery, RunWanted]) -> Reply:
    draft = draft_of(call.body)
    submitted = await call.services.manager.submit(draft, call.body.secrets, call.caller.uid)
    run = submitted.run
    if not submitted.created and not call.sees_all_runs and not await call.owns(run.id):
        raise RefusedError(
            Refusal.ID_CONFLICT, f"Run {run.id} of another user exists already.", pointer="/id"
        )
    return Reply(
        status=201 if submitted.created else 200,
        body=summary(call.services, run),
        headers={"Location": f"/v1/runs/{run.id}"},
    )


async def list_runs(call: Call[RunsQuery, None]) -> Reply:
    manager, query = call.services.manager, call.query
    try:
        page = await manager.runs(
            state=given(query.state),
            project=given(query.project),
            limit=query.limit,
            cursor=given(query.cursor),
        )
    except ValueError as error:
        raise ProblemError(
            Refusal.INVALID_FIELD.value,
            "The query parameter `cursor` is none that this node gave out.",
            parameter="cursor",
        ) from error
    visible = [run for run in page.runs if call.sees_all_runs or await call.owns(run.id)]
    return Reply(
        body=answers.RunsAnswer(
            runs=[summary(call.services, run) for run in visible], next_cursor=page.next_cursor
        )
    )


async def show_run(call: Call[NoQuery, None]) -> Reply:
    await call.must_reach_run()
    manager = call.services.manager
    run = await manager.run(call.run_id)
    timeline = await manager.transitions_of(run.id)
    return Reply(
        body=shown.run(
            run,
            usage=await manager.usage_of(run.id),
            progress=manager.progress_of(run.id),
            queue_position=manager.queue_position(run.id),
            timeline=timeline,
        )
    )


async def stop_run(call: Call[NoQuery, StopWanted]) -> Reply:
    await call.must_reach_run()
    wanted = call.body
    grace = wanted.grace_seconds
    order = StopOrder(
        results=wanted.results,
        grace_seconds=call.services.stop_grace_seconds if grace is None else grace,
        reason=wanted.reason,
        by=await asyncio.to_thread(user_name, call.caller.uid),
    )
    run = await call.services.manager.stop(call.run_id, order)
    return Reply(status=202, body=summary(call.services, run))


async def show_changes(call: Call[NoQuery, None]) -> Reply:
    await call.must_reach_run()
    manager = call.services.manager
    run = await manager.run(call.run_id)
    changes = await manager.changes_of(run.id)
    return Reply(
        body=answers.ChangesAnswer(
            run_id=run.id,
            keeps_workspace=run.keeps_workspace,
            changes=[shown.change(change) for change in changes],
        )
    )


def summary(services: Services, run: Run) -> answers.RunAnswer:
    """A run without its timeline: all of it is at hand without a look into the journal."""
    manager = services.manager
    return shown.run(
        run,
        usage=run.usage,
        progress=manager.progress_of(run.id),
        queue_position=manager.queue_position(run.id),
    )

"""Revisions and images made ready before a run needs them."""

from executord.api import answers_node, shown
from executord.api.calls import Call, Reply
from executord.api.checks import prefetch_of
from executord.api.wire import NoQuery, PrefetchWanted


async def prefetch(call: Call[NoQuery, PrefetchWanted]) -> Reply:
    """200 where everything is here, else 202 with the job that makes it ready."""
    job = await call.services.prefetching.prefetch(prefetch_of(call.body))
    return Reply(body=shown.prefetch(job), status=200 if job.state == "ready" else 202)


async def show_prefetches(call: Call[NoQuery, None]) -> Reply:
    jobs = [shown.prefetch(job) for job in call.services.prefetching.jobs()]
    return Reply(body=answers_node.PrefetchesAnswer(jobs=jobs))

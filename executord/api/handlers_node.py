"""The node, its caches, its use and its health."""

from typing import NoReturn

from executord.api import answers_cache, answers_node, shown, shown_cache
from executord.api.calls import Call, Reply
from executord.api.problems import NOT_READY, ProblemError
from executord.api.wire import EntriesQuery, NoQuery, PruneWanted
from executord.core.refusals import Refusal, RefusedError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def show_node(call: Call[NoQuery, None]) -> Reply:
    return Reply(body=shown.node(call.services.manager.node()))


async def show_stats(call: Call[NoQuery, None]) -> Reply:
    services = call.services
    runs = []
    for run in services.manager.live_runs():
        if not call.sees_all_runs and run.assignment.owner_uid != call.caller.uid:
            continue
        sample = services.meters.latest(run.id)
        runs.append(
            answers_node.RunUseAnswer(
                id=run.id,
                project=run.assignment.project,
                tier=run.assignment.tier,
                state=run.state,
                sample=shown.sample(sample) if sample else None,
            )
        )
    host = await services.meters.host()
    return Reply(body=answers_node.StatsAnswer(host=shown.host(host), runs=runs))


async def show_cache(call: Call[NoQuery, None]) -> Reply:
    files = await call.services.files.stats()
    report = files.report
    images = await call.services.images.entries()
    return Reply(
        body=answers_node.CacheAnswer(
            files=shown.files_stats(
                files,
                shown_cache.cache_report(report, with_names=call.sees_all_runs)
                if report is not None
                else None,
            ),
            images=answers_node.ImageCacheAnswer(
                images=len(images), own_bytes=sum(image.own_bytes for image in images)
            ),
            prefetches=[shown.prefetch(job) for job in call.services.prefetching.jobs()],
        )
    )


async def show_trees(call: Call[EntriesQuery, None]) -> Reply:
    entries = [entry for entry in await call.services.files.entries() if entry.kind != "blob"]
    entries.sort(key=lambda entry: entry.last_used, reverse=True)
    return Reply(
        body=answers_node.TreesAnswer(
            entries=[shown.cache_entry(entry) for entry in entries[: call.query.limit]],
            total=len(entries),
        )
    )


async def show_trace(call: Call[NoQuery, None]) -> Reply:
    uses = await call.services.files.trace()
    return Reply(body=answers_cache.TraceAnswer(uses=[shown_cache.trace_use(use) for use in uses]))


async def show_images(call: Call[EntriesQuery, None]) -> Reply:
    entries = sorted(
        await call.services.images.entries(), key=lambda entry: entry.last_used, reverse=True
    )
    return Reply(
        body=answers_node.ImagesAnswer(
            entries=[shown.image_entry(entry) for entry in entries[: call.query.limit]],
            total=len(entries),
        )
    )


async def prune(call: Call[NoQuery, PruneWanted]) -> Reply:
    report = await call.services.files.prune(dry_run=call.body.dry_run)
    return Reply(body=shown.prune_report(report))


async def not_implemented(_call: Call[NoQuery, None]) -> NoReturn:
    raise RefusedError(
        Refusal.NOT_IMPLEMENTED, "This version of executord has this path, and nothing behind it."
    )


async def healthz(_call: Call[NoQuery, None]) -> Reply:
    return Reply(body=answers_node.HealthAnswer())


async def readyz(call: Call[NoQuery, None]) -> Reply:
    ready, why_not = call.services.manager.ready()
    if not ready:
        raise ProblemError(NOT_READY, why_not)
    return Reply(body=answers_node.ReadyAnswer())


async def metrics(call: Call[NoQuery, None]) -> Reply:
    return Reply(body=call.services.metrics.render(), content_type=METRICS_TYPE)

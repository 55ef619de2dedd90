"""The routes, in one table: what the socket understands, and what OpenAPI is made from."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from executord.api import answers as a
from executord.api import answers_cache as c
from executord.api import answers_node as n
from executord.api import answers_verify as v
from executord.api import (
    handlers_follow,
    handlers_node,
    handlers_prefetch,
    handlers_runs,
    handlers_sync,
    handlers_verify,
    openapi,
    shown,
    wire,
)
from executord.api.access import Access
from executord.api.calls import Call, Follow, Reply
from executord.core.cloudevents import CloudEvent
from executord.core.refusals import Refusal

Handler: TypeAlias = Callable[[Call[Any, Any]], Awaitable[Reply | Follow]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`{id}` in a path is a run's id. `refusals` are the problems beside those every route has.

    `answers` maps a status to the type of its JSON; None stands for text. `items` are the types
    of the pieces of its stream, where it has one.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    summary: str
    access: Access
    handler: Handler
    answers: Mapping[int, Any] = field(default_factory=dict)
    query: type[wire.Request] = wire.NoQuery
    body: type[wire.Request] | None = None
    items: tuple[Any, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    on_tcp: bool = False

    @property
    def has_run_id(self) -> bool:
        return "{id}" in self.path


@lru_cache(maxsize=1)
def _document(version: str) -> bytes:
    return shown.encode(openapi.document(TABLE, version))


async def _openapi(call: Call[wire.NoQuery, None]) -> Reply:
    return Reply(body=_document(call.services.manager.node().version))


def _later(path: str, name: str, summary: str, access: Access = Access.OPERATE) -> Route:
    return Route(
        method="POST",
        path=path,
        name=name,
        summary=summary,
        access=access,
        handler=handlers_node.not_implemented,
        refusals=(Refusal.NOT_IMPLEMENTED,),
    )


TABLE: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/runs",
        name="submitRun",
        summary="Accept an assignment: 201 once it is durable, 200 where it was here already",
        access=Access.SUBMIT,
        handler=handlers_runs.submit,
        body=wire.RunWanted,
        answers={201: a.RunAnswer, 200: a.RunAnswer},
        refusals=(
            Refusal.UNKNOWN_TIER,
            Refusal.TOO_LARGE_FOR_NODE,
            Refusal.MOUNT_NOT_ALLOWED,
            Refusal.IMAGE_REQUIRED,
            Refusal.UNKNOWN_REVISION,
            Refusal.ID_CONFLICT,
            Refusal.QUEUE_FULL,
            Refusal.DRAINING,
            Refusal.SHUTTING_DOWN,
            Refusal.DISK_FULL,
        ),
    ),
    Route(
        method="GET",
        path="/v1/runs",
        name="listRuns",
        summary="Runs, newest first",
        access=Access.READ_RUNS,
        handler=handlers_runs.list_runs,
        query=wire.RunsQuery,
        answers={200: a.RunsAnswer},
    ),
    Route(
        method="GET",
        path="/v1/runs/{id}",
        name="showRun",
        summary="One run with its timeline",
        access=Access.READ_RUNS,
        handler=handlers_runs.show_run,
        answers={200: a.RunAnswer},
    ),
    Route(
        method="POST",
        path="/v1/runs/{id}/stop",
        name="stopRun",
        summary="Ask a run to stop; durable when answered, and asking twice is asking once",
        access=Access.CONTROL_RUNS,
        handler=handlers_runs.stop_run,
        body=wire.StopWanted,
        answers={202: a.RunAnswer},
        refusals=(Refusal.RUN_OVER, Refusal.SHUTTING_DOWN, Refusal.DISK_FULL),
    ),
    Route(
        method="GET",
        path="/v1/runs/{id}/logs",
        name="readLogs",
        summary="Console output by byte offset, as a page or as a stream",
        access=Access.READ_RUNS,
        handler=handlers_follow.logs,
        query=wire.LogsQuery,
        answers={200: a.LogsAnswer},
        items=(a.LogRecord,),
    ),
    Route(
        method="GET",
        path="/v1/runs/{id}/usage",
        name="readUsage",
        summary="Resource use: samples and a summary, as a page or as a stream",
        access=Access.READ_RUNS,
        handler=handlers_follow.usage,
        query=wire.UsageQuery,
        answers={200: a.UsageAnswer},
        items=(a.SampleAnswer, a.UsageEnd),
    ),
    Route(
        method="GET",
        path="/v1/runs/{id}/files",
        name="listChanges",
        summary="Files that the run changed, live or in the end",
        access=Access.READ_RUNS,
        handler=handlers_runs.show_changes,
        answers={200: a.ChangesAnswer},
    ),
    Route(
        method="POST",
        path="/v1/runs/{id}/sync",
        name="syncRun",
        summary="Store changed files now: of a run that goes on, or of one whose end could not",
        access=Access.CONTROL_RUNS,
        handler=handlers_sync.sync_run,
        body=wire.SyncWanted,
        answers={200: a.SyncAnswer},
        refusals=(Refusal.NOTHING_TO_SYNC, Refusal.SHUTTING_DOWN, Refusal.DISK_FULL),
    ),
    Route(
        method="GET",
        path="/v1/events",
        name="readEvents",
        summary="Every transition of every run in order, as a page or as a stream",
        access=Access.READ_RUNS,
        handler=handlers_follow.events,
        query=wire.EventsQuery,
        answers={200: a.EventsAnswer},
        items=(CloudEvent,),
    ),
    Route(
        method="GET",
        path="/v1/cache",
        name="showCache",
        summary="What the caches hold, as sums",
        access=Access.READ_NODE,
        handler=handlers_node.show_cache,
        answers={200: n.CacheAnswer},
    ),
    Route(
        method="GET",
        path="/v1/cache/trees",
        name="listTrees",
        summary="Project trees that are kept ready, last used first",
        access=Access.READ_CACHE,
        handler=handlers_node.show_trees,
        query=wire.EntriesQuery,
        answers={200: n.TreesAnswer},
    ),
    Route(
        method="GET",
        path="/v1/cache/trace",
        name="readTrace",
        summary="What runs asked the file cache for, as far as it is recorded",
        access=Access.READ_CACHE,
        handler=handlers_node.show_trace,
        answers={200: c.TraceAnswer},
    ),
    Route(
        method="GET",
        path="/v1/cache/images",
        name="listImages",
        summary="Environment images on the node, last used first",
        access=Access.READ_CACHE,
        handler=handlers_node.show_images,
        query=wire.EntriesQuery,
        answers={200: n.ImagesAnswer},
    ),
    Route(
        method="POST",
        path="/v1/cache/prune",
        name="pruneCache",
        summary="Free what nobody needs now, or tell what that would be",
        access=Access.OPERATE,
        handler=handlers_node.prune,
        body=wire.PruneWanted,
        answers={200: n.PruneAnswer},
    ),
    Route(
        method="POST",
        path="/v1/cache/verify",
        name="verifyCache",
        summary="Check all that the file cache holds against its digests, and mend it if asked",
        access=Access.OPERATE,
        handler=handlers_verify.verify,
        query=wire.VerifyQuery,
        body=wire.VerifyWanted,
        answers={200: v.VerifyAnswer},
        items=(v.VerifyProgress, v.VerifyAnswer),
    ),
    Route(
        method="POST",
        path="/v1/cache/prefetch",
        name="prefetch",
        summary="Make revisions and images ready beforehand: 200 where all is here, else 202",
        access=Access.OPERATE,
        handler=handlers_prefetch.prefetch,
        body=wire.PrefetchWanted,
        answers={200: n.PrefetchAnswer, 202: n.PrefetchAnswer},
        refusals=(Refusal.IMAGE_REQUIRED, Refusal.QUEUE_FULL, Refusal.SHUTTING_DOWN),
    ),
    Route(
        method="GET",
        path="/v1/cache/prefetch",
        name="showPrefetches",
        summary="What is being made ready beforehand, and what became of the last ones",
        access=Access.READ_CACHE,
        handler=handlers_prefetch.show_prefetches,
        answers={200: n.PrefetchesAnswer},
    ),
    Route(
        method="GET",
        path="/v1/stats",
        name="showStats",
        summary="What the host and each live run use now",
        access=Access.READ_RUNS,
        handler=handlers_node.show_stats,
        answers={200: n.StatsAnswer},
    ),
    Route(
        method="GET",
        path="/v1/node",
        name="showNode",
        summary="The node: tiers, promises, engine, whether it accepts runs",
        access=Access.READ_NODE,
        handler=handlers_node.show_node,
        answers={200: n.NodeAnswer},
    ),
    _later("/v1/node/drain", "drainNode", "Take no new runs"),
    _later("/v1/node/resume", "resumeNode", "Take runs again"),
    Route(
        method="GET",
        path="/healthz",
        name="health",
        summary="The daemon lives",
        access=Access.ANYBODY,
        handler=handlers_node.healthz,
        answers={200: n.HealthAnswer},
        on_tcp=True,
    ),
    Route(
        method="GET",
        path="/readyz",
        name="readiness",
        summary="The node can do its work; 503 says why it cannot",
        access=Access.ANYBODY,
        handler=handlers_node.readyz,
        answers={200: n.ReadyAnswer},
        on_tcp=True,
    ),
    Route(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="Prometheus exposition",
        access=Access.ANYBODY,
        handler=handlers_node.metrics,
        answers={200: None},
        on_tcp=True,
    ),
    Route(
        method="GET",
        path="/openapi.json",
        name="openapi",
        summary="This description",
        access=Access.ANYBODY,
        handler=_openapi,
        answers={200: dict[str, Any]},
    ),
)

"""What can be followed while it grows: console, usage, events. Each resumes after any piece."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from executord.api import answers, shown
from executord.api.calls import Call, Follow, Item, Reply, closing
from executord.api.problems import ProblemError
from executord.api.wire import EventsQuery, LogsQuery, UsageQuery, given
from executord.core.cloudevents import cloud_event
from executord.core.refusals import Refusal
from executord.core.run import Transition
from executord.ports import Stream

N = TypeVar("N", int, float)

_EVENTS_A_BATCH = 500
_EVENTS_WAIT_SECONDS = 30.0
_USAGE_POLL_SECONDS = 0.5
_LEAST_RECORD_BYTES = 64  # what a record costs in a page, however short it is
_MOST_REMEMBERED_OWNERS = 10_000


# -- console ---------------------------------------------------------------------------------------


async def logs(call: Call[LogsQuery, None]) -> Reply | Follow:
    await call.must_reach_run()
    await call.services.manager.run(call.run_id)
    since = _after_last_event(call.last_event_id, call.query.since)
    stream: Stream | None = given(call.query.stream)
    if call.query.follow:
        return Follow(_console(call, since, stream))
    return Reply(body=await _page_of_logs(call, since, stream))


async def _page_of_logs(
    call: Call[LogsQuery, None], since: int, stream: Stream | None
) -> answers.LogsAnswer:
    records: list[answers.LogRecord] = []
    size, end, more = 0, since, False
    console = call.services.consoles.read(call.run_id, since=since, follow=False, stream=stream)
    async with closing(console):
        async for record in console:
            if size >= call.query.limit:
                more = True
                break
            records.append(shown.log_record(record, with_time=call.query.timestamps))
            size += max(len(record.data), _LEAST_RECORD_BYTES)
            end = max(end, record.end)
    return answers.LogsAnswer(records=records, next_offset=end, more=more)


async def _console(
    call: Call[LogsQuery, None], since: int, stream: Stream | None
) -> AsyncIterator[Item]:
    console = call.services.consoles.read(call.run_id, since=since, follow=True, stream=stream)
    async with closing(console):
        async for record in console:
            answer = shown.log_record(record, with_time=call.query.timestamps)
            yield Item("log", str(record.end), shown.encode(answer))


# -- usage -----------------------------------------------------------------------------------------


async def usage(call: Call[UsageQuery, None]) -> Reply | Follow:
    await call.must_reach_run()
    manager = call.services.manager
    await manager.run(call.run_id)
    since = call.query.since
    if call.last_event_id:
        since = max(since, _number(call.last_event_id, float))
    if call.query.follow:
        return Follow(_usage(call, since))
    samples = await manager.usage_samples(call.run_id, since)
    return Reply(
        body=answers.UsageAnswer(
            samples=[shown.sample(sample) for sample in samples],
            summary=await manager.usage_of(call.run_id),
            next_since=samples[-1].time if samples else since,
        )
    )


async def _usage(call: Call[UsageQuery, None], since: float) -> AsyncIterator[Item]:
    """Whether the run is over is asked before its samples are: so the last ones are not missed."""
    manager = call.services.manager
    while True:
        run = await manager.run(call.run_id)
        for sample in await manager.usage_samples(call.run_id, since):
            since = max(since, sample.time)
            yield Item("sample", repr(since), shown.encode(shown.sample(sample)))
        if run.is_over:
            end = answers.UsageEnd(summary=await manager.usage_of(call.run_id))
            yield Item("summary", repr(since), shown.encode(end))
            return
        await asyncio.sleep(_USAGE_POLL_SECONDS)


# -- events ----------------------------------------------------------------------------------------


async def events(call: Call[EventsQuery, None]) -> Reply | Follow:
    after = _after_last_event(call.last_event_id, call.query.after)
    if call.query.follow:
        return Follow(_events(call, after))
    manager = call.services.manager
    node = manager.node().name
    found = await manager.transitions_after(after, call.query.limit)
    visible = await _Visible(call).of(found)
    return Reply(
        body={
            "events": [cloud_event(node, transition) for transition in visible],
            "next_after": found[-1].seq if found else after,
        }
    )


async def _events(call: Call[EventsQuery, None], after: int) -> AsyncIterator[Item]:
    manager = call.services.manager
    node = manager.node().name
    visible = _Visible(call)
    while True:
        found = await manager.transitions_after(after, _EVENTS_A_BATCH)
        for transition in await visible.of(found):
            event = cloud_event(node, transition)
            yield Item("transition", str(transition.seq), shown.encode(event))
        if found:
            after = found[-1].seq
        else:
            await manager.wait_for_events(after, _EVENTS_WAIT_SECONDS)


class _Visible:
    """Leaves out what the caller may not see."""

    def __init__(self, call: Call[EventsQuery, None]) -> None:
        self._call = call
        self._own: dict[str, bool] = {}

    async def of(self, transitions: Sequence[Transition]) -> Sequence[Transition]:
        if self._call.sees_all_runs:
            return transitions
        if len(self._own) > _MOST_REMEMBERED_OWNERS:
            self._own.clear()
        for run_id in {transition.run_id for transition in transitions} - self._own.keys():
            self._own[run_id] = await self._call.owns(run_id)
        return [transition for transition in transitions if self._own[transition.run_id]]


# -- where to go on --------------------------------------------------------------------------------


def _after_last_event(last_event_id: str, asked: int) -> int:
    return max(asked, _number(last_event_id, int)) if last_event_id else asked


def _number(text: str, kind: Callable[[str], N]) -> N:
    try:
        if text.isascii() and len(text) <= 32:
            number = kind(text)
            if 0 <= number < 2**63:
                return number
    except ValueError:
        pass
    raise ProblemError(
        Refusal.BAD_REQUEST.value, "`Last-Event-ID` is none that this stream gave out."
    )

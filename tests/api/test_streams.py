"""Streams: what is followed, how it is resumed, and that nothing of it stays behind."""

import asyncio
import base64
import json
import time
from typing import Any

import aiohttp
import pytest

from executord.api.limits import Limits
from executord.core.reasons import Fault, FaultError, Reason
from executord.core.states import State
from tests.fakes.api import DOCUMENT, Api, conform, serving
from tests.fakes.services import NOW, a_sample, ended

SSE = "text/event-stream"


async def lines(response: aiohttp.ClientResponse, count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            line = await response.content.readline()
            assert line, "the stream ended too early"
            if line.strip():
                found.append(json.loads(line))
    return found


async def sse(response: aiohttp.ClientResponse, count: int) -> list[dict[str, str]]:
    """Events as a browser parses them; comments are left out."""
    found: list[dict[str, str]] = []
    event: dict[str, str] = {}
    async with asyncio.timeout(5):
        while len(found) < count:
            line = (await response.content.readline()).decode()
            assert line, "the stream ended too early"
            name, _, value = line.rstrip("\n").partition(": ")
            if name and not line.startswith(":"):
                event[name] = value
            elif event:
                found.append(event)
                event = {}
    return found


async def until(api: Api, open_readers: int) -> None:
    async with asyncio.timeout(3):
        while api.parts.consoles.open_readers != open_readers:  # noqa: ASYNC110 - a fake, watched
            await asyncio.sleep(0.01)


async def test_a_console_is_followed_until_it_is_sealed(api: Api) -> None:
    api.parts.manager.add("r-1")
    await api.parts.consoles.write("r-1", b"one\n")
    async with api.follow("/v1/runs/r-1/logs?follow=true") as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        first = await lines(response, 1)
        await api.parts.consoles.write("r-1", b"\xff\xfe", "stderr")
        await api.parts.consoles.lose("r-1", 100)
        rest = await lines(response, 2)
        await api.parts.consoles.seal("r-1")
        assert (await response.content.read()).strip() == b""
    assert first[0]["data"] == "one\n"
    assert base64.b64decode(rest[0]["data_base64"]) == b"\xff\xfe"
    assert "data" not in rest[0]
    assert rest[1] == {**rest[1], "stream": "gap", "data": "", "lost_bytes": 100, "offset": 6}
    operation = DOCUMENT["paths"]["/v1/runs/{id}/logs"]["get"]
    schema = operation["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    for record in first + rest:
        conform(record, schema)
    assert api.parts.consoles.open_readers == 0


async def test_a_console_goes_on_by_offset_without_loss_or_repetition(api: Api) -> None:
    api.parts.manager.add("r-1")
    for number in range(20):
        await api.parts.consoles.write("r-1", b"%03d\n" % number)
    await api.parts.consoles.seal("r-1")
    async with api.follow("/v1/runs/r-1/logs?follow=true") as response:
        seen = await lines(response, 7)
    since = seen[-1]["offset"] + len(seen[-1]["data"])
    rest = await api.get(f"/v1/runs/r-1/logs?follow=true&since={since}")
    records = seen + [json.loads(line) for line in rest.body.splitlines() if line]
    whole = "".join(record["data"] for record in records)
    assert whole == "".join(f"{number:03}\n" for number in range(20))


async def test_server_sent_events_resume_after_the_last_one_seen(api: Api) -> None:
    api.parts.manager.add("r-1")
    await api.parts.consoles.write("r-1", b"one\n")
    await api.parts.consoles.write("r-1", b"two\n")
    await api.parts.consoles.seal("r-1")
    target = "/v1/runs/r-1/logs?follow=true"
    async with api.follow(target, Accept=SSE) as response:
        assert response.headers["Content-Type"] == SSE
        first = await sse(response, 1)
    assert first[0]["event"] == "log"
    assert first[0]["id"] == "4"
    async with api.follow(target, Accept=SSE, **{"Last-Event-ID": first[0]["id"]}) as response:
        rest = await sse(response, 2)
    assert json.loads(rest[0]["data"])["data"] == "two\n"
    assert rest[1] == {"event": "end", "data": "{}"}


@pytest.mark.parametrize("last", ["nonsense", "-1", "9" * 40, "1e3", "٣"])
async def test_an_event_id_that_was_never_given_is_refused(api: Api, last: str) -> None:
    answer = await api.get("/v1/events?follow=true", **{"Last-Event-ID": last})
    assert (answer.status, answer.code) == (400, "bad_request")


async def test_a_page_of_logs_is_bounded_and_says_where_to_go_on(api: Api) -> None:
    api.parts.manager.add("r-1")
    for number in range(10):
        await api.parts.consoles.write("r-1", b"%099d\n" % number)
    seen, since, more = "", 0, True
    pages = 0
    while more:
        page = (await api.get(f"/v1/runs/r-1/logs?since={since}&limit=250")).json
        assert len(page["records"]) <= 3
        seen += "".join(record["data"] for record in page["records"])
        since, more = page["next_offset"], page["more"]
        pages += 1
    assert len(seen) == 1000
    assert pages == 4
    assert api.parts.consoles.open_readers == 0


async def test_one_stream_of_a_console_and_no_times_if_they_are_not_wanted(api: Api) -> None:
    api.parts.manager.add("r-1")
    await api.parts.consoles.write("r-1", b"out")
    await api.parts.consoles.write("r-1", b"err", "stderr")
    page = (await api.get("/v1/runs/r-1/logs?stream=stderr&timestamps=false")).json
    assert page["records"] == [{"offset": 3, "stream": "stderr", "data": "err", "lost_bytes": 0}]
    assert page["next_offset"] == 6


async def test_events_are_followed_in_order_and_resumed_by_sequence(api: Api) -> None:
    manager = api.parts.manager
    manager.add("r-1")
    async with api.follow("/v1/events?follow=true") as response:
        seen = await lines(response, 1)
        await manager.move("r-1", State.SCHEDULED)
        seen += await lines(response, 1)
    await manager.move("r-1", State.PREPARING)
    async with api.follow(f"/v1/events?follow=true&after={seen[-1]['data']['seq']}") as response:
        seen += await lines(response, 1)
    assert [event["data"]["seq"] for event in seen] == [1, 2, 3]
    assert [event["data"]["to"] for event in seen] == ["Queued", "Scheduled", "Preparing"]
    assert seen[0]["id"] == "node-1/r-1/1"


async def test_events_as_server_sent_events_carry_their_sequence_as_id(api: Api) -> None:
    for number in range(3):
        api.parts.manager.add(f"r-{number}")
    async with api.follow(
        "/v1/events?follow=true", Accept=SSE, **{"Last-Event-ID": "1"}
    ) as response:
        seen = await sse(response, 2)
    assert [(event["id"], event["event"]) for event in seen] == [
        ("2", "transition"),
        ("3", "transition"),
    ]


async def test_a_page_of_events_says_where_to_go_on(api: Api) -> None:
    for number in range(5):
        api.parts.manager.add(f"r-{number}")
    first = (await api.get("/v1/events?limit=3")).json
    second = (await api.get(f"/v1/events?after={first['next_after']}")).json
    last = (await api.get(f"/v1/events?after={second['next_after']}")).json
    assert [len(page["events"]) for page in (first, second, last)] == [3, 2, 0]
    assert last["next_after"] == 5


async def test_usage_is_followed_until_the_run_is_over_and_ends_with_its_summary(api: Api) -> None:
    run = api.parts.manager.add("r-1")
    samples = api.parts.manager.samples["r-1"] = [a_sample(NOW + 1)]
    async with api.follow("/v1/runs/r-1/usage?follow=true") as response:
        seen = await lines(response, 1)
        samples.append(a_sample(NOW + 2))
        await api.parts.manager.move("r-1", State.FAILED, **ended(run))
        seen += await lines(response, 2)
        assert (await response.content.read()).strip() == b""
    assert [sample["cpu_seconds"] for sample in seen[:2]] == [1.0, 2.0]
    assert seen[2]["summary"]["cpu_seconds"] == 1.5


async def test_usage_goes_on_after_the_last_sample(api: Api) -> None:
    run = api.parts.manager.add("r-1")
    api.parts.manager.samples["r-1"] = [a_sample(NOW + second) for second in (1, 2, 3)]
    page = (await api.get(f"/v1/runs/r-1/usage?since={NOW + 1}")).json
    assert [sample["cpu_seconds"] for sample in page["samples"]] == [2.0, 3.0]
    assert page["next_since"] == NOW + 3
    await api.parts.manager.move("r-1", State.FAILED, **ended(run))
    async with api.follow(
        "/v1/runs/r-1/usage?follow=true", Accept=SSE, **{"Last-Event-ID": repr(NOW + 2)}
    ) as response:
        seen = await sse(response, 3)
    assert [event["event"] for event in seen] == ["sample", "summary", "end"]


@pytest.mark.parametrize(("accept", "beat"), [(SSE, b":\n"), ("*/*", b"\n")])
async def test_a_quiet_stream_says_that_it_is_alive(api: Api, accept: str, beat: bytes) -> None:
    api.parts.manager.add("r-1")
    async with api.follow("/v1/runs/r-1/logs?follow=true", Accept=accept) as response:
        async with asyncio.timeout(2):
            assert await response.content.readline() == beat


async def test_a_client_that_goes_away_frees_its_reader(api: Api) -> None:
    api.parts.manager.add("r-1")
    for _ in range(5):
        async with api.follow("/v1/runs/r-1/logs?follow=true"):
            await until(api, 1)
        await until(api, 0)


async def test_many_followers_see_all_of_it(api: Api) -> None:
    api.parts.manager.add("r-1")

    async def follow() -> str:
        answer = await api.get("/v1/runs/r-1/logs?follow=true")
        records = [json.loads(line) for line in answer.body.splitlines() if line]
        return "".join(record["data"] for record in records)

    following = [asyncio.create_task(follow()) for _ in range(30)]
    await until(api, 30)
    for number in range(300):
        await api.parts.consoles.write("r-1", b"%d\n" % number)
    await api.parts.consoles.seal("r-1")
    whole = "".join(f"{number}\n" for number in range(300))
    assert set(await asyncio.gather(*following)) == {whole}


async def test_a_slow_reader_is_cut_off_and_its_reader_freed() -> None:
    async with serving(limits=Limits(write_seconds=0.3)) as api:
        api.parts.manager.add("r-1")
        _, writer = await asyncio.open_unix_connection(str(api.socket), limit=1)
        writer.write(b"GET /v1/runs/r-1/logs?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(api, 1)
        for _ in range(64):
            await api.parts.consoles.write("r-1", b"x" * 65536)
        await until(api, 0)
        writer.close()


async def test_a_stream_that_fails_is_broken_off_and_never_looks_whole(api: Api) -> None:
    api.parts.manager.add("r-1")
    await api.parts.consoles.write("r-1", b"one\n")
    async with api.follow("/v1/runs/r-1/logs?follow=true") as response:
        await lines(response, 1)
        await api.parts.consoles.break_down(RuntimeError("the inside"))
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()
    assert (await api.get("/healthz")).status == 200


async def test_a_stream_of_events_that_fails_says_why(api: Api) -> None:
    api.parts.manager.add("r-1")
    async with api.follow("/v1/runs/r-1/logs?follow=true", Accept=SSE) as response:
        await until(api, 1)
        fault = Fault(Reason.DISK_FULL, "The console of r-1 cannot be read.")
        await api.parts.consoles.break_down(FaultError(fault))
        seen = await sse(response, 1)
    assert seen[0]["event"] == "error"
    assert json.loads(seen[0]["data"])["detail"] == "The console of r-1 cannot be read."


async def test_a_server_with_open_streams_stops_quickly_and_breaks_them_off() -> None:
    async with serving() as api:
        api.parts.manager.add("r-1")
        responses = []
        for target in ("/v1/runs/r-1/logs", "/v1/events?after=9", "/v1/runs/r-1/usage") * 5:
            joiner = "&" if "?" in target else "?"
            responses.append(await api.follow(f"{target}{joiner}follow=true"))
        await until(api, 5)
        began = time.monotonic()
        await api.server.stop()
        assert time.monotonic() - began < 0.5  # what an idle server needs, and no time-out
        assert api.parts.consoles.open_readers == 0
        for response in responses:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        assert not api.socket.exists()

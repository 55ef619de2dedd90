"""Clients that send too much, too slowly, or no HTTP at all."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator

import pytest

from executord.api.limits import Limits
from tests.fakes.api import A_RUN, Api, serving

HEAD = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def problem_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    return int(head.split()[1]), json.loads(body)["code"]


async def test_a_body_of_two_megabytes_is_413(api: Api) -> None:
    body = b'{"command": ["' + b"x" * (2 << 20) + b'"]}'
    answer = await api.ask(
        "POST", "/v1/runs", content=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert (await api.post("/v1/runs", A_RUN)).status == 201


async def test_a_body_without_a_length_is_413_once_it_is_too_long(api: Api) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(32):
            yield b" " * 65536

    async with api.session.post(
        "http://localhost/v1/runs", data=pieces(), headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 413


async def test_a_body_that_comes_too_slowly_is_408(api: Api) -> None:
    answer = await api.raw(HEAD + b"Content-Length: 100\r\n\r\n{")
    assert problem_of(answer) == (408, "request_timeout")


async def test_a_head_that_does_not_end_is_cut_off() -> None:
    async with serving(limits=Limits(head_seconds=0.3)) as api:
        assert await api.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n", seconds=3) == b""


async def drip(client: socket.socket) -> None:
    for _ in range(100):
        client.sendall(b"x")
        await asyncio.sleep(0.05)


async def test_a_head_that_drips_is_cut_off_all_the_same() -> None:
    async with serving(limits=Limits(head_seconds=0.3)) as api:
        began = time.monotonic()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(api.socket))
            client.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
            with pytest.raises(ConnectionError):
                await drip(client)
        assert time.monotonic() - began < 3


async def test_a_connection_that_says_nothing_is_closed(api: Api) -> None:
    began = time.monotonic()
    assert await api.raw(b"") == b""
    assert 0.5 < time.monotonic() - began < 3


async def test_a_connection_may_be_idle_between_requests(api: Api) -> None:
    reader, writer = await asyncio.open_unix_connection(str(api.socket))
    body = json.dumps(A_RUN).encode()
    for _ in range(3):
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 201 ")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
        await asyncio.sleep(0.7)  # longer than a head may take
    writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(500)) + b"\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_a_problem_document_and_the_door(api: Api, sent: bytes) -> None:
    status, code = problem_of(await api.raw(sent))
    assert (status, code) == (400, "bad_request")
    assert (await api.get("/healthz")).status == 200


async def test_a_chunk_that_is_none_is_400(api: Api) -> None:
    answer = await api.raw(
        HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nnonsense\r\n"
    )
    assert problem_of(answer) == (400, "bad_request")


async def test_an_expectation_is_met_before_the_body_is_read(api: Api) -> None:
    body = json.dumps(A_RUN).encode()
    reader, writer = await asyncio.open_unix_connection(str(api.socket))
    writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
    writer.close()


async def test_another_expectation_is_417(api: Api) -> None:
    answer = await api.ask("GET", "/v1/node", headers={"Expect": "miracles"})
    assert (answer.status, answer.code) == (417, "expectation_failed")


async def test_two_requests_sent_at_once_are_answered_in_order(api: Api) -> None:
    answer = await api.raw(
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        b"GET /v1/nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert answer.index(b" 200 ") < answer.index(b" 404 ")


async def test_a_user_has_so_many_connections_and_no_more() -> None:
    async with serving(limits=Limits(connections_per_uid=3)) as api:
        held = [await asyncio.open_unix_connection(str(api.socket)) for _ in range(3)]
        await asyncio.sleep(0.05)
        answer = await api.raw(b"")
        assert problem_of(answer) == (429, "too_many_connections")
        assert b"Retry-After: 1" in answer
        held[0][1].close()
        await asyncio.sleep(0.05)
        assert (await api.get("/healthz")).status == 200
        for _, writer in held:
            writer.close()


async def test_a_client_that_does_not_read_is_left_after_a_while() -> None:
    limits = Limits(write_seconds=0.3, connections_per_uid=4)
    async with serving(limits=limits) as api:
        for number in range(1000):
            api.parts.manager.add(f"r-{number}")
        reader, writer = await asyncio.open_unix_connection(str(api.socket), limit=1)
        request = b"GET /v1/runs?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(request)
        await asyncio.sleep(1.0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(50 << 20), 10)
        writer.close()

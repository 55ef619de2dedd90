"""What is wrong with a request is told by its place, and changes nothing."""

import json
from typing import Any

import pytest

from tests.fakes.api import A_RUN, Api

JSON = {"Content-Type": "application/json"}


def with_run(**fields: Any) -> bytes:
    return json.dumps({**A_RUN, **fields}).encode()


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "line 1, column 2"),
        (b"", "empty"),
        (b'{"command": [nonsense]}', "line 1, column 14"),
        (b'{"command":\n  ["a"],\n  oops}', "line 3, column 3"),
        (b'{"command": ["a"]} trailing', "line 1, column 20"),
        (b'{"command": ["\xff"]}', "UTF-8"),
        (b'{"command": ["\\ud800"]}', "not JSON"),
        (b'{"limits": {"run_seconds": NaN}}', "column 28"),
        (b"\xef\xbb\xbf{}", "column 1"),
    ],
)
async def test_what_is_no_json_is_400_and_says_where(api: Api, body: bytes, place: str) -> None:
    answer = await api.ask("POST", "/v1/runs", content=body, headers=JSON)
    assert (answer.status, answer.code) == (400, "bad_request")
    assert place in answer.json["detail"]
    assert api.parts.manager.kept == {}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"[]", ""),
        (b"{}", "/command"),
        (with_run(nonsense=1), "/nonsense"),
        (with_run(**{"a/b~c": 1}), "/a~1b~0c"),
        (with_run(**{"x" * 5000: 1}), "/" + "x" * 100 + "…"),
        (with_run(command=[]), "/command"),
        (with_run(command="true"), "/command"),
        (with_run(command=["a", 1]), "/command/1"),
        (with_run(command=[""]), "/command/0"),
        (with_run(command=["a", "b\0"]), "/command/1"),
        (with_run(command=["a"] * 1025), "/command"),
        (with_run(command=["a", "x" * 131072]), "/command/1"),
        (with_run(command=["a", "é" * 66000]), "/command/1"),
        (with_run(command=["a" * 100_000] * 3), "/command"),
        (with_run(id=""), "/id"),
        (with_run(id="a/b"), "/id"),
        (with_run(id=".."), "/id"),
        (with_run(id="r-1\n"), "/id"),
        (with_run(id="r" * 64), "/id"),
        (with_run(project="a/b/c"), "/project"),
        (with_run(project="../b"), "/project"),
        (with_run(project="a/."), "/project"),
        (with_run(project="a" * 129), "/project"),
        (with_run(tier="no such/tier"), "/tier"),
        (with_run(number=-1), "/number"),
        (with_run(number=1.5), "/number"),
        (with_run(number=10**30), "/number"),
        (with_run(started_by="a\nb"), "/started_by"),
        (with_run(files={"revision": "sha256:abc"}), "/files/revision"),
        (with_run(files={}), "/files/revision"),
        (with_run(environment={"image": "no image"}), "/environment/image"),
        (with_run(environment={"image": "-v"}), "/environment/image"),
        (with_run(environment={"nonsense": 1}), "/environment/nonsense"),
        (with_run(environment={"dockerfile": "x" * 65537}), "/environment/dockerfile"),
        (with_run(environment={"dockerfile": "RUN \0"}), "/environment/dockerfile"),
        (with_run(environment={"pull": "sometimes"}), "/environment/pull"),
        (with_run(environment={"build_args": {"A B": ""}}), "/environment/build_args/A B"),
        (with_run(environment={"build_args": {"A": "x" * 4097}}), "/environment/build_args/A"),
        (with_run(env={"A": "1", "B": 2}), "/env/B"),
        (with_run(env={"1A": ""}), "/env/1A"),
        (with_run(env={"A=B": ""}), "/env/A=B"),
        (with_run(env={"A\n": ""}), "/env/A\n"),
        (with_run(env={"A": "\0"}), "/env/A"),
        (with_run(env={f"A{i}": "" for i in range(513)}), "/env"),
        (with_run(env={f"A{i}": "x" * 100_000 for i in range(3)}), "/env"),
        (with_run(env={"A": "1"}, secrets={"A": "2"}), "/secrets/A"),
        (with_run(secrets={"A": None}), "/secrets/A"),
        (with_run(labels={"": "x"}), "/labels/"),
        (with_run(labels={"ok": "x", "team": "a\nb"}), "/labels/team"),
        (with_run(mounts=[{"source": "/a", "target": "b"}]), "/mounts/0/target"),
        (with_run(mounts=[{"source": "/a"}]), "/mounts/0/target"),
        (with_run(mounts=[{"source": "/a", "target": "/"}]), "/mounts/0/target"),
        (with_run(project="alice/head"), "/project"),
        (with_run(mounts=[{"source": "/a/../etc", "target": "/b"}]), "/mounts/0/source"),
        (with_run(mounts=[{"source": "/a", "target": "/b,ro"}]), "/mounts/0/target"),
        (with_run(mounts=[{"source": "/a:b", "target": "/b"}]), "/mounts/0/source"),
        (with_run(mounts=[{"source": "/a\\b", "target": "/b"}]), "/mounts/0/source"),
        (with_run(mounts=[{"source": "/a\0", "target": "/b"}]), "/mounts/0/source"),
        (
            with_run(mounts=[{"source": "/a", "target": t} for t in ("/b", "/b/")]),
            "/mounts/1/target",
        ),
        (with_run(limits={"run_seconds": 0}), "/limits/run_seconds"),
        (b'{"command":["a"],"limits":{"run_seconds":1e999}}', "/limits/run_seconds"),
        (with_run(limits={"run_seconds": "1h"}), "/limits/run_seconds"),
        (with_run(results={"keep_on": ["always"]}), "/results/keep_on/0"),
    ],
)
async def test_a_field_that_is_wrong_is_422_and_named(api: Api, body: bytes, pointer: str) -> None:
    answer = await api.ask("POST", "/v1/runs", content=body, headers=JSON)
    assert (answer.status, answer.code) == (422, "invalid_field"), answer.body
    assert answer.json.get("pointer", "") == pointer
    assert len(answer.body) < 2000
    assert api.parts.manager.kept == {}


@pytest.mark.parametrize("depth", [100, 100_000])
async def test_deep_nesting_is_an_error_like_any_other(api: Api, depth: int) -> None:
    for body in (b"[" * depth, b'{"command":["a"],"env":{"A":1},"x":' + b"[" * depth):
        answer = await api.ask("POST", "/v1/runs", content=body, headers=JSON)
        assert answer.status in (400, 422)


@pytest.mark.parametrize(
    ("target", "parameter"),
    [
        ("/v1/runs?state=Flying", "state"),
        ("/v1/runs?state=null", "state"),
        ("/v1/runs?limit=0", "limit"),
        ("/v1/runs?limit=1001", "limit"),
        ("/v1/runs?limit=ten", "limit"),
        ("/v1/runs?limit=1&limit=2", "limit"),
        ("/v1/runs?cursor=nonsense", "cursor"),
        ("/v1/runs?project=a/b/c", "project"),
        ("/v1/runs?nonsense=1", "nonsense"),
        ("/v1/runs?nonsense=", "nonsense"),
        ("/v1/node?verbose=1", "verbose"),
        ("/v1/events?after=-1", "after"),
        ("/v1/events?after=99999999999999999999", "after"),
        ("/v1/events?follow=perhaps", "follow"),
        ("/v1/runs/r-1/logs?since=1.5", "since"),
        ("/v1/runs/r-1/logs?stream=gap", "stream"),
        ("/v1/runs/r-1/usage?since=nan", "since"),
        ("/v1/runs/r-1/usage?since=inf", "since"),
        ("/v1/cache/trees?limit=1000000", "limit"),
    ],
)
async def test_a_query_parameter_that_is_wrong_is_named(
    api: Api, target: str, parameter: str
) -> None:
    api.parts.manager.add("r-1")
    answer = await api.get(target)
    assert (answer.status, answer.code) == (422, "invalid_field"), answer.body
    assert answer.json["parameter"] == parameter


@pytest.mark.parametrize(
    "body",
    [
        {"results": "burn"},
        {"grace_seconds": -1},
        {"grace_seconds": 1e9},
        {"force": True},
        {"reason": "\0"},
    ],
)
async def test_a_stop_that_is_wrong_stops_nothing(api: Api, body: dict[str, Any]) -> None:
    api.parts.manager.add("r-1")
    answer = await api.post("/v1/runs/r-1/stop", body)
    assert (answer.status, answer.code) == (422, "invalid_field")
    assert answer.json["pointer"] == f"/{next(iter(body))}"
    assert api.parts.manager.orders == []


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
async def test_a_body_of_another_type_is_415(api: Api, kind: str) -> None:
    answer = await api.ask("POST", "/v1/runs", content=with_run(), headers={"Content-Type": kind})
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


async def test_a_compressed_body_is_415_and_never_unpacked(api: Api) -> None:
    answer = await api.ask(
        "POST", "/v1/runs", content=b"\x1f\x8b", headers={**JSON, "Content-Encoding": "gzip"}
    )
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fetc%2Fpasswd", "%2e%2e", "..", "a%00b", "%ff", "x" * 300, "a%0a", "r-1%0A"]
)
@pytest.mark.parametrize("tail", ["", "/logs", "/files"])
async def test_an_id_that_none_can_have_reaches_nothing(api: Api, name: str, tail: str) -> None:
    api.parts.manager.error = AssertionError("the manager was asked")
    answer = await api.raw(
        f"GET /v1/runs/{name}{tail} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"unknown_run" in answer


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/v1",
        "/v1/runs/",
        "/v1/runs/r-1/nonsense",
        "/v1/runs/r-1/logs/x",
        "/v2/runs",
        "//v1/runs",
        "/v1/../healthz",
        "/healthz/",
    ],
)
async def test_an_unknown_path_is_404(api: Api, target: str) -> None:
    answer = await api.raw(
        f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404 "), answer
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("DELETE", "/v1/runs", "GET, POST"),
        ("PUT", "/v1/runs/r-1", "GET"),
        ("GET", "/v1/runs/r-1/stop", "POST"),
        ("POST", "/healthz", "GET"),
        ("OPTIONS", "/v1/node", "GET"),
        ("PROPFIND", "/v1/node", "GET"),
    ],
)
async def test_a_method_that_a_path_does_not_know_is_405_with_allow(
    api: Api, method: str, target: str, allowed: str
) -> None:
    answer = await api.ask(method, target)
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed

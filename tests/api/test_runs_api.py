"""Runs over the socket: accept, list, show, stop, changed files."""

import asyncio
import json
from typing import Any

import pytest

from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Evidence, Result
from executord.core.states import State
from executord.ports import DiskFullError, FileChange, JournalError
from tests.fakes.api import A_RUN, Api
from tests.fakes.services import NOW, ended

WHOLE_RUN: dict[str, Any] = {
    "id": "r-2041",
    "project": "alice/churn",
    "number": 42,
    "started_by": "alice",
    "tier": "small",
    "files": {"revision": "sha256:" + "0" * 64},
    "environment": {
        "image": "python:3.12-slim",
        "dockerfile": "RUN pip install pandas",
        "build_args": {"A": "1"},
        "pull": "always",
    },
    "command": ["python", "train.py", "--depth", "6"],
    "env": {"DEPTH": "6"},
    "secrets": {"DB_PASSWORD": "canary-7f3a"},
    "mounts": [{"source": "/data/sets/churn/", "target": "/data", "read_only": True}],
    "limits": {"run_seconds": 3600},
    "results": {"keep_on": ["succeeded", "failed"]},
    "labels": {"team": "growth"},
}


async def test_an_accepted_run_is_answered_with_201_and_its_place(api: Api) -> None:
    answer = await api.post("/v1/runs", A_RUN)
    assert answer.status == 201
    assert answer.headers["Location"] == f"/v1/runs/{answer.json['id']}"
    assert answer.json["state"] == "Queued"
    assert answer.json["queue_position"] == 0


async def test_every_field_of_an_assignment_reaches_the_manager_and_comes_back(api: Api) -> None:
    answer = await api.post("/v1/runs", WHOLE_RUN)
    shown = answer.json["assignment"]
    asked = {name: value for name, value in WHOLE_RUN.items() if name != "secrets"}
    mount = {"source": "/data/sets/churn", "revision": None, "target": "/data", "read_only": True}
    asked["mounts"] = [mount]
    asked["results"] = {"keep_on": ["failed", "succeeded"]}
    assert shown == {**asked, "secret_names": ["DB_PASSWORD"]}
    run, draft, secrets = api.parts.manager.kept["r-2041"]
    assert secrets == {"DB_PASSWORD": "canary-7f3a"}
    assert draft.environment.pull.value == "always"
    assert run.assignment.run_seconds == 3600


async def test_a_secret_is_in_no_answer(api: Api) -> None:
    answers = [
        await api.post("/v1/runs", WHOLE_RUN),
        await api.post("/v1/runs", WHOLE_RUN),
        await api.post("/v1/runs", {**WHOLE_RUN, "number": 43}),
        await api.post("/v1/runs", {**WHOLE_RUN, "nonsense": 1}),
        await api.post("/v1/runs", {**WHOLE_RUN, "secrets": {"A": ["canary-7f3a"]}}),
        await api.post("/v1/runs", {**WHOLE_RUN, "secrets": {"A-": "canary-7f3a"}}),
        await api.get("/v1/runs/r-2041"),
        await api.get("/v1/runs"),
        await api.get("/v1/events"),
    ]
    assert [answer.status for answer in answers] == [201, 200, 409, 422, 422, 422, 200, 200, 200]
    assert all(b"canary-7f3a" not in answer.body for answer in answers)


async def test_a_bug_while_a_secret_is_in_hand_tells_nothing_of_it(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.parts.manager.error = RuntimeError("the inside")
    answer = await api.post("/v1/runs", WHOLE_RUN)
    assert answer.status == 500
    assert answer.code == "internal"
    assert b"the inside" not in answer.body
    logged = "".join(capsys.readouterr())
    assert answer.json["correlation_id"] in logged
    assert "canary-7f3a" not in logged


async def test_the_same_id_is_200_with_the_same_content_and_409_with_another(api: Api) -> None:
    first = await api.post("/v1/runs", WHOLE_RUN)
    again = await api.post("/v1/runs", WHOLE_RUN)
    other = await api.post("/v1/runs", {**WHOLE_RUN, "command": ["false"]})
    assert (first.status, again.status, other.status) == (201, 200, 409)
    assert again.json["id"] == first.json["id"]
    assert other.code == "id_conflict"
    assert len(api.parts.manager.kept) == 1


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refusal.BAD_REQUEST, 400),
        (Refusal.INVALID_FIELD, 422),
        (Refusal.UNKNOWN_TIER, 422),
        (Refusal.TOO_LARGE_FOR_NODE, 422),
        (Refusal.MOUNT_NOT_ALLOWED, 422),
        (Refusal.IMAGE_REQUIRED, 422),
        (Refusal.FORBIDDEN, 403),
        (Refusal.UNKNOWN_REVISION, 404),
        (Refusal.ID_CONFLICT, 409),
        (Refusal.QUEUE_FULL, 429),
        (Refusal.DRAINING, 503),
        (Refusal.SHUTTING_DOWN, 503),
        (Refusal.DISK_FULL, 507),
    ],
)
async def test_a_refused_run_gets_the_status_of_its_code(
    api: Api, refusal: Refusal, status: int
) -> None:
    api.parts.manager.error = RefusedError(refusal, "Because.", pointer="/tier")
    answer = await api.post("/v1/runs", A_RUN)
    assert answer.status == status
    assert answer.code == refusal.value
    assert answer.json["pointer"] == "/tier"
    assert answer.json["detail"] == "Because."
    assert answer.json["type"] == f"urn:executord:problem:{refusal.value}"


async def test_a_full_queue_says_when_to_come_back(api: Api) -> None:
    api.parts.manager.error = RefusedError(Refusal.QUEUE_FULL, "Full.", retry_after_seconds=9)
    answer = await api.post("/v1/runs", A_RUN)
    assert answer.headers["Retry-After"] == "9"
    assert answer.json["retry_after_seconds"] == 9


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DiskFullError("no space"), 507, "disk_full"),
        (JournalError("/secret/path is gone"), 503, "unavailable"),
    ],
)
async def test_a_journal_that_cannot_be_written_is_told_without_its_inside(
    api: Api, error: Exception, status: int, code: str
) -> None:
    api.parts.manager.error = error
    answer = await api.post("/v1/runs", A_RUN)
    assert (answer.status, answer.code) == (status, code)
    assert str(error).encode() not in answer.body


async def test_a_submit_is_finished_though_the_client_went_away(api: Api) -> None:
    manager = api.parts.manager
    manager.gate = asyncio.Event()
    asking = asyncio.create_task(api.post("/v1/runs", {**A_RUN, "id": "r-gone"}))
    await asyncio.wait_for(manager.submitting.wait(), 5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0.1)
    assert "r-gone" not in manager.kept
    manager.gate.set()
    await asyncio.wait_for(manager.submitted.wait(), 5)
    assert "r-gone" in manager.kept


async def test_runs_are_listed_newest_first_and_in_pages(api: Api) -> None:
    for number in range(5):
        api.parts.manager.add(f"r-{number}")
    first = await api.get("/v1/runs?limit=3")
    second = await api.get(f"/v1/runs?limit=3&cursor={first.json['next_cursor']}")
    assert [run["id"] for run in first.json["runs"]] == ["r-4", "r-3", "r-2"]
    assert [run["id"] for run in second.json["runs"]] == ["r-1", "r-0"]
    assert second.json["next_cursor"] is None
    assert "timeline" not in first.json["runs"][0]


async def test_runs_are_filtered_by_state_and_project(api: Api) -> None:
    api.parts.manager.add("r-1")
    api.parts.manager.add("r-2")
    await api.parts.manager.move("r-2", State.SCHEDULED)
    found = await api.get("/v1/runs?state=Scheduled&project=")
    assert [run["id"] for run in found.json["runs"]] == ["r-2"]
    assert (await api.get("/v1/runs?project=bob/none")).json["runs"] == []
    assert (await api.get("/v1/runs?project=null")).json["runs"] == []


async def test_a_run_that_ended_explains_itself(api: Api) -> None:
    run = api.parts.manager.add("r-1")
    await api.parts.manager.move("r-1", State.FAILED, **ended(run))
    shown = (await api.get("/v1/runs/r-1")).json
    assert shown["explanation"]["side"] == "user"
    assert "executorctl logs r-1" in shown["explanation"]["advice"]
    assert shown["exit_code"] == 3
    assert shown["evidence"]["exit_code"] == 3
    assert shown["evidence"]["started_at"] == "2026-11-18T11:06:40.000000Z"
    assert shown["result"]["diagnostics"] == {"accuracy": 0.9}
    assert shown["usage"]["memory_peak_bytes"] == 2 << 20
    assert shown["progress"] == {}
    assert [step["to"] for step in shown["timeline"]] == ["Queued", "Failed"]
    assert [step["from"] for step in shown["timeline"]] == [None, "Queued"]
    assert shown["timeline"][0]["costs"][0]["seconds"] == 0.25


async def test_a_signal_is_named_in_the_evidence(api: Api) -> None:
    api.parts.manager.add("r-1", evidence=Evidence(exit_code=137))
    assert (await api.get("/v1/runs/r-1")).json["evidence"]["signal"] == "SIGKILL"


async def test_diagnostics_that_are_no_plain_json_harm_no_answer(api: Api) -> None:
    run = api.parts.manager.add("r-1")
    odd: list[Any] = [2**200, "\ud800", "\udcff"]
    result = Result(revision="", diagnostics={"odd": odd}, skipped=("\udcff: FIFO",))
    fields = {**ended(run), "result": result}
    await api.parts.manager.move("r-1", State.FAILED, **fields)
    api.parts.manager.add("r-2")
    shown = await api.get("/v1/runs")
    assert shown.status == 200
    assert shown.json["runs"][1]["result"]["diagnostics"]["odd"][0] == 2**200
    assert shown.json["runs"][1]["result"]["skipped"] == ["?: FIFO"]


async def test_times_are_rfc_3339_with_microseconds(api: Api) -> None:
    api.parts.manager.add("r-1", accepted_at=NOW + 0.25)
    shown = (await api.get("/v1/runs/r-1")).json
    assert shown["accepted_at"] == "2026-11-18T11:06:40.250000Z"
    assert shown["state_since"] == "2026-11-18T11:06:40.000000Z"
    assert shown["ended_at"] is None


async def test_a_stop_is_answered_with_202_and_carries_its_order(api: Api) -> None:
    api.parts.manager.add("r-1")
    body = {"results": "discard", "grace_seconds": 2.5, "reason": "too slow"}
    answer = await api.post("/v1/runs/r-1/stop", body)
    assert answer.status == 202
    assert answer.json["state"] == "StopRequested"
    assert answer.json["stop"] == {**body, "by": "root"}


async def test_a_stop_without_a_body_takes_the_nodes_grace(api: Api) -> None:
    api.parts.manager.add("r-1")
    answer = await api.ask("POST", "/v1/runs/r-1/stop")
    assert answer.status == 202
    assert api.parts.manager.orders[0].grace_seconds == 7.0
    assert api.parts.manager.orders[0].results.value == "keep"


async def test_a_second_stop_is_202_and_a_stop_after_the_end_409(api: Api) -> None:
    api.parts.manager.add("r-1")
    statuses = [(await api.post("/v1/runs/r-1/stop", {})).status for _ in range(2)]
    assert statuses == [202, 202]
    assert len(api.parts.manager.orders) == 1
    await api.parts.manager.move("r-1", State.STOPPED)
    late = await api.post("/v1/runs/r-1/stop", {})
    assert (late.status, late.code) == (409, "run_over")


@pytest.mark.parametrize("path", ["", "/logs", "/usage", "/files", "/logs?follow=true"])
async def test_a_run_that_is_not_there_is_404(api: Api, path: str) -> None:
    answer = await api.get(f"/v1/runs/r-none{path}")
    assert (answer.status, answer.code) == (404, "unknown_run")


async def test_changed_files_are_named_also_where_the_name_is_not_utf_8(api: Api) -> None:
    api.parts.manager.add("r-1")
    api.parts.manager.changes["r-1"] = [
        FileChange(path="results/chart.svg", kind="added", size_bytes=10),
        FileChange(path=b"caf\xe9".decode("utf-8", "surrogateescape"), kind="deleted"),
    ]
    shown = (await api.get("/v1/runs/r-1/files")).json
    assert shown["changes"] == [
        {"kind": "added", "size_bytes": 10, "path": "results/chart.svg"},
        {"kind": "deleted", "size_bytes": 0, "path_base64": "Y2Fm6Q=="},
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/node/drain",
        "/v1/node/resume",
    ],
)
async def test_what_comes_later_says_so(api: Api, path: str) -> None:
    answer = await api.post(path, {"anything": 1})
    assert (answer.status, answer.code) == (501, "not_implemented")


async def test_many_submits_at_once_are_all_accepted(api: Api) -> None:
    answers = await asyncio.gather(
        *(api.post("/v1/runs", {**A_RUN, "id": f"r-{i}"}) for i in range(50))
    )
    assert [answer.status for answer in answers] == [201] * 50
    assert len(api.parts.manager.kept) == 50


async def test_a_cut_body_changes_nothing(api: Api) -> None:
    whole = json.dumps(A_RUN).encode()
    head = "POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(whole)}\r\n\r\n"
    _, writer = await asyncio.open_unix_connection(str(api.socket))
    writer.write(head.encode() + whole[:10])
    await writer.drain()
    writer.close()
    await asyncio.sleep(0.1)
    assert api.parts.manager.kept == {}
    assert (await api.get("/healthz")).status == 200

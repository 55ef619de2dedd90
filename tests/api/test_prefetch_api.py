"""Prefetches and mounted revisions, asked for over the socket."""

from typing import Any

import pytest

from executord.core.refusals import Refusal, RefusedError
from executord.core.run import Environment
from executord.runs.prefetch import PrefetchWanted
from tests.fakes.api import Api

REVISION = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
PATH = "/v1/cache/prefetch"


async def test_a_prefetch_is_accepted_and_can_be_watched(api: Api) -> None:
    asked = {"revisions": [REVISION], "images": [{"image": "python:3", "dockerfile": "RUN true"}]}
    answer = await api.post(PATH, asked)
    assert answer.status == 202
    assert answer.json["state"] == "working"
    assert [item["kind"] for item in answer.json["items"]] == ["revision", "image"]
    assert answer.json["items"][0]["progress"]["what"] == "fetching files"
    assert api.parts.prefetching.asked == [
        PrefetchWanted(
            revisions=(REVISION,),
            environments=(Environment(image="python:3", dockerfile="RUN true"),),
        )
    ]
    assert (await api.get(PATH)).json == {"jobs": [answer.json]}
    assert (await api.get("/v1/cache")).json["prefetches"] == [answer.json]


async def test_where_everything_is_here_the_answer_is_200(api: Api) -> None:
    answer = await api.post(PATH, {"images": [{"image": "here:1"}]})
    assert (answer.status, answer.json["state"]) == (200, "ready")
    assert answer.json["held_until"] is not None


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/revisions"),
        ({"revisions": ["sha256:abc"]}, "/revisions/0"),
        ({"revisions": [REVISION] * 65}, "/revisions"),
        ({"images": [{"image": "i"}] * 17}, "/images"),
        ({"images": [{"image": "../x"}]}, "/images/0/image"),
        ({"images": [{"image": "i", "pull": "always"}]}, "/images/0/pull"),
        ({"images": [{"image": "i", "dockerfile": "RUN \0"}]}, "/images/0/dockerfile"),
        ({"images": [{"image": "i", "build_args": {"1": ""}}]}, "/images/0/build_args/1"),
        ({"revision": REVISION}, "/revision"),
    ],
)
async def test_what_a_prefetch_names_is_checked_like_an_assignment(
    api: Api, body: dict[str, Any], pointer: str
) -> None:
    answer = await api.post(PATH, body)
    assert (answer.status, answer.code) == (422, "invalid_field")
    assert answer.json["pointer"] == pointer
    assert api.parts.prefetching.asked == []


async def test_too_many_prefetches_are_refused_for_now(api: Api) -> None:
    api.parts.prefetching.error = RefusedError(
        Refusal.QUEUE_FULL, "16 are under way.", retry_after_seconds=10
    )
    answer = await api.post(PATH, {"revisions": [REVISION]})
    assert (answer.status, answer.code) == (429, "queue_full")
    assert answer.headers["Retry-After"] == "10"


# -- mounted revisions -----------------------------------------------------------------------------


def with_mounts(*mounts: dict[str, Any]) -> dict[str, Any]:
    return {"command": ["true"], "environment": {"image": "i"}, "mounts": list(mounts)}


async def test_a_revision_is_mounted_beside_a_directory_of_the_node(api: Api) -> None:
    answer = await api.post(
        "/v1/runs",
        with_mounts(
            {"revision": REVISION, "target": "/data/x/"}, {"source": "/sets", "target": "/data/y"}
        ),
    )
    assert answer.status == 201, answer.json
    assert answer.json["assignment"]["mounts"] == [
        {"source": None, "revision": REVISION, "target": "/data/x", "read_only": True},
        {"source": "/sets", "revision": None, "target": "/data/y", "read_only": True},
    ]


@pytest.mark.parametrize(
    ("mounts", "pointer", "says"),
    [
        ([{"target": "/d"}], "/mounts/0", "either"),
        ([{"revision": REVISION, "source": "/s", "target": "/d"}], "/mounts/0", "either"),
        (
            [{"revision": REVISION, "target": "/d", "read_only": False}],
            "/mounts/0/read_only",
            "never changes",
        ),
        ([{"revision": "head", "target": "/d"}], "/mounts/0/revision", "sha256"),
        ([{"revision": REVISION, "target": "/"}], "/mounts/0/target", "root"),
        ([{"revision": REVISION, "target": "data"}], "/mounts/0/target", "absolute"),
        ([{"revision": REVISION, "target": "/d/../e"}], "/mounts/0/target", "`..`"),
        (
            [{"revision": REVISION, "target": "/d"}, {"revision": OTHER, "target": "/d/"}],
            "/mounts/1/target",
            "twice",
        ),
        (
            [{"revision": REVISION, "target": "/d"}, {"source": "/s", "target": "/d/e"}],
            "/mounts/1/target",
            "side by side",
        ),
        (
            [{"source": "/s", "target": "/d/e"}, {"revision": REVISION, "target": "/d"}],
            "/mounts/1/target",
            "side by side",
        ),
    ],
)
async def test_a_mount_that_makes_no_sense_is_refused_by_its_place(
    api: Api, mounts: list[dict[str, Any]], pointer: str, says: str
) -> None:
    answer = await api.post("/v1/runs", with_mounts(*mounts))
    assert (answer.status, answer.code) == (422, "invalid_field")
    assert answer.json["pointer"] == pointer
    assert says in answer.json["detail"]
    assert api.parts.manager.kept == {}

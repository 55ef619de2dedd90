"""POST /v1/cache/verify: one answer, or a stream that is given up when its reader leaves."""

import asyncio
import json

import pytest

from executord.ports import DamagedObject
from tests.fakes.api import DOCUMENT, Api, conform

BAD = DamagedObject(
    kind="blob",
    digest="sha256:" + "a" * 64,
    what="b/\udcff has other content",
    mended=False,
    trees=("sha256:" + "b" * 64,),
    runs=("r-1",),
)


async def test_the_report_is_one_answer(api: Api) -> None:
    answer = await api.post("/v1/cache/verify")
    assert (answer.status, answer.json["good"], answer.json["objects"]) == (200, True, [])


@pytest.mark.parametrize("repair", [True, False])
async def test_what_is_bad_is_named_and_mended_if_asked(api: Api, repair: bool) -> None:
    api.parts.files.bad = [BAD]
    answer = await api.post("/v1/cache/verify", {"repair": repair})
    assert answer.json["good"] is repair
    (found,) = answer.json["objects"]
    assert (found["digest"], found["mended"], found["runs"]) == (BAD.digest, repair, ["r-1"])


async def test_followed_it_shows_how_far_it_is_and_ends_with_the_report(api: Api) -> None:
    answer = await api.post("/v1/cache/verify?follow=true", {})
    pieces = [json.loads(line) for line in answer.body.splitlines() if line.strip()]
    assert pieces[0]["what"] == "checking the cache"
    assert pieces[-1]["good"] is True
    for name, piece in zip(("VerifyProgress", "VerifyAnswer"), pieces, strict=True):
        conform(piece, DOCUMENT["components"]["schemas"][name])


async def test_a_reader_that_leaves_gives_the_check_up(api: Api) -> None:
    api.parts.files.stuck = asyncio.Event()
    async with api.session.post("http://localhost/v1/cache/verify?follow=true") as response:
        assert await response.content.readline()
        response.close()
    async with asyncio.timeout(5):
        while not api.parts.files.given_up:  # noqa: ASYNC110 - a fake, watched
            await asyncio.sleep(0.01)


async def test_an_unknown_field_is_refused(api: Api) -> None:
    assert (await api.post("/v1/cache/verify", {"mend": True})).code == "invalid_field"

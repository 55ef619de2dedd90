"""`executorctl cache verify` on the daemon's own API server."""

import asyncio
import json
import subprocess
from dataclasses import replace

from executord.ports import DamagedObject
from tests.fakes.api import Api, serving
from tests.fakes.executorctl import ctl

BAD = DamagedObject(
    kind="blob",
    digest="sha256:" + "a" * 64,
    what="b/c has other content",
    mended=False,
    runs=("r-1",),
)


async def on(api: Api, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(ctl, *arguments, socket=api.socket)


async def test_all_is_right() -> None:
    async with serving() as api:
        done = await on(api, "cache", "verify")
    assert done.returncode == 0
    assert b"All of it is right." in done.stdout


async def test_what_is_bad_is_named_and_fails_with_1() -> None:
    async with serving() as api:
        api.parts.files.bad = [BAD]
        done = await on(api, "cache", "verify")
    assert done.returncode == 1
    assert b"b/c has other content (live runs: r-1)" in done.stdout
    assert b"1 bad, 0 mended." in done.stdout
    assert b"--repair" in done.stderr


async def test_why_it_was_not_mended_is_said_with_what_to_do() -> None:
    why = "The store file:///away does not answer."
    async with serving() as api:
        api.parts.files.bad = [replace(BAD, why_not=why)]
        done = await on(api, "cache", "verify", "--repair")
    assert done.returncode == 1
    assert f"not mended: {why}".encode() in done.stdout
    assert b"when the store is back" in done.stderr


async def test_what_was_mended_is_said_and_is_fine() -> None:
    async with serving() as api:
        api.parts.files.bad = [BAD]
        done = await on(api, "cache", "verify", "--repair")
    assert done.returncode == 0
    assert b"1 bad, 1 mended." in done.stdout


async def test_for_machines_it_is_the_report() -> None:
    async with serving() as api:
        api.parts.files.bad = [BAD]
        done = await on(api, "cache", "verify", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert (report["good"], report["damaged"], report["objects"][0]["kind"]) == (False, 1, "blob")

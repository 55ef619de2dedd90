"""`executorctl cache prefetch`, on a fake daemon."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executord.cli.cache.prefetch import _wanted
from tests.fakes.daemon import FakeDaemon, problem
from tests.fakes.executorctl import Live, ctl

REVISION = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as fake:
        yield fake


def job(state: str, item_state: str, **item: Any) -> dict[str, Any]:
    return {
        "id": "p-1",
        "state": state,
        "items": [
            {"kind": "revision", "name": REVISION, "state": item_state, "way": "", "detail": ""}
            | item
        ],
    }


def answers(daemon: FakeDaemon, first: dict[str, Any], then: dict[str, Any]) -> None:
    daemon.fixed["POST /v1/cache/prefetch"] = (202, first)
    daemon.fixed["GET /v1/cache/prefetch"] = (200, {"jobs": [then]})


def test_it_waits_until_all_is_ready(daemon: FakeDaemon) -> None:
    answers(daemon, job("working", "waiting"), job("working", "working"))
    wanted = json.dumps({"revisions": [REVISION]})
    source = daemon.path.with_name("wanted.json")
    source.write_text(wanted)
    live = Live("cache", "prefetch", str(source), socket=daemon.path)
    daemon.wait_for(lambda: "GET /v1/cache/prefetch" in daemon.requests)
    daemon.fixed["GET /v1/cache/prefetch"] = (
        200,
        {"jobs": [job("ready", "ready", way="farm")]},
    )
    assert live.process.wait(30) == 0
    out = live.process.stdout
    assert out is not None
    text = out.read().decode()
    assert "ready" in text
    assert "farm" in text


def test_what_could_not_be_made_ready_is_an_error_with_its_reason(daemon: FakeDaemon) -> None:
    ended = job("incomplete", "dropped", detail="There is no room for it.")
    answers(daemon, ended, ended)
    done = ctl("cache", "prefetch", "-", socket=daemon.path, stdin=b'{"revisions": []}')
    assert done.returncode == 1
    assert b"There is no room for it." in done.stdout


def test_detached_it_prints_the_job_and_leaves(daemon: FakeDaemon) -> None:
    answers(daemon, job("working", "waiting"), job("working", "waiting"))
    done = ctl("cache", "prefetch", "--detach", "-", socket=daemon.path, stdin=b"{}")
    assert (done.returncode, done.stdout) == (0, b"p-1\n")
    assert daemon.requests == ["POST /v1/cache/prefetch"]


def test_a_daemon_that_has_restarted_meanwhile_is_told(daemon: FakeDaemon) -> None:
    daemon.fixed["POST /v1/cache/prefetch"] = (202, job("working", "waiting"))
    daemon.fixed["GET /v1/cache/prefetch"] = (200, {"jobs": []})
    done = ctl("cache", "prefetch", "-", socket=daemon.path, stdin=b"{}")
    assert done.returncode == 1
    assert b"restarted" in done.stderr


def test_a_refusal_is_passed_on(daemon: FakeDaemon) -> None:
    daemon.fixed["POST /v1/cache/prefetch"] = problem(422, "invalid_field", "`/revisions` is odd.")
    done = ctl("--json", "cache", "prefetch", "-", socket=daemon.path, stdin=b"{}")
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"]["code"] == "invalid_field"


def test_of_an_assignment_everything_that_it_needs_is_asked_for() -> None:
    assignment = {
        "command": ["true"],
        "files": {"revision": REVISION},
        "mounts": [
            {"revision": OTHER, "target": "/d"},
            {"source": "/sets", "target": "/s"},
            {"revision": REVISION, "target": "/e"},
        ],
        "environment": {"image": "i", "dockerfile": "RUN true", "pull": "always"},
    }
    assert _wanted(assignment) == {
        "revisions": [REVISION, OTHER],
        "images": [{"image": "i", "dockerfile": "RUN true"}],
    }
    assert _wanted({"command": ["true"]}) == {"revisions": [], "images": [{}]}
    assert _wanted({"revisions": [REVISION]}) == {"revisions": [REVISION]}


def test_a_shortened_digest_is_refused_in_words(daemon: FakeDaemon) -> None:
    given = json.dumps({"revisions": ["sha256:6ac133c5"]}).encode()
    done = ctl("cache", "prefetch", "-", socket=daemon.path, stdin=given)
    assert done.returncode == 2
    assert b"whole digest (sha256: and 64 hex digits) is needed" in done.stderr
    assert daemon.requests == []


def test_jobs_can_be_looked_at_later(daemon: FakeDaemon) -> None:
    ended = job("incomplete", "dropped", detail="There is no room for it.")
    daemon.fixed["GET /v1/cache/prefetch"] = (200, {"jobs": [ended]})
    done = ctl("cache", "prefetch", "--show", socket=daemon.path)
    assert done.returncode == 0
    shown = " ".join(done.stdout.decode().split())
    assert "p-1 incomplete" in shown
    assert "0 of 1 item" in shown
    assert "There is no room for it." in shown
    assert ctl("-q", "cache", "prefetch", "--show", socket=daemon.path).stdout == b"p-1\n"
    as_json = ctl("--json", "cache", "prefetch", "--show", socket=daemon.path).stdout
    assert json.loads(as_json) == {"jobs": [ended]}


def test_prefetching_nothing_is_a_mistake_of_usage(daemon: FakeDaemon) -> None:
    for words in ((), ("--show", "-"), ("--show", "--detach")):
        assert ctl("cache", "prefetch", *words, socket=daemon.path, stdin=b"{}").returncode == 2
    assert daemon.requests == []

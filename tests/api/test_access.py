"""Every route asked by real users of every role, and what each may see."""

import asyncio
import grp
import json
import os
import pwd
import subprocess

import pytest

from executord.api.access import AccessRules, Role, look_up
from executord.api.routes import TABLE
from tests.fakes.api import A_RUN, Api, serving

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

ADMIN, OPERATOR, SUBMIT, READ, NOBODY = 61001, 61002, 61003, 61004, 61005
IN_GROUP, GROUP = 61006, 61100
RULES = AccessRules(
    admin=(f"uid:{ADMIN}",),
    operator=(f"uid:{OPERATOR}",),
    submit=(f"uid:{SUBMIT}",),
    read=(f"uid:{READ}",),
)
ROLES = {"admin": ADMIN, "operator": OPERATOR, "submit": SUBMIT, "read": READ, "nobody": NOBODY}

# method and path: the status for admin, operator, submit (own run, other's run), read, nobody
TABLE_OF_RIGHTS: dict[tuple[str, str], tuple[int, int, int, int, int, int]] = {
    ("POST", "/v1/runs"): (201, 201, 201, 201, 403, 403),
    ("GET", "/v1/runs"): (200, 200, 200, 200, 200, 403),
    ("GET", "/v1/runs/{id}"): (200, 200, 200, 403, 200, 403),
    ("POST", "/v1/runs/{id}/stop"): (202, 202, 202, 403, 403, 403),
    ("GET", "/v1/runs/{id}/logs"): (200, 200, 200, 403, 200, 403),
    ("GET", "/v1/runs/{id}/usage"): (200, 200, 200, 403, 200, 403),
    ("GET", "/v1/runs/{id}/files"): (200, 200, 200, 403, 200, 403),
    ("POST", "/v1/runs/{id}/sync"): (409, 409, 409, 403, 403, 403),
    ("GET", "/v1/events"): (200, 200, 200, 200, 200, 403),
    ("GET", "/v1/cache"): (200, 200, 200, 200, 200, 403),
    ("GET", "/v1/cache/trees"): (200, 200, 403, 403, 200, 403),
    ("GET", "/v1/cache/images"): (200, 200, 403, 403, 200, 403),
    ("GET", "/v1/cache/trace"): (200, 200, 403, 403, 200, 403),
    ("POST", "/v1/cache/prune"): (200, 200, 403, 403, 403, 403),
    ("POST", "/v1/cache/verify"): (200, 200, 403, 403, 403, 403),
    ("POST", "/v1/cache/prefetch"): (422, 422, 403, 403, 403, 403),
    ("GET", "/v1/cache/prefetch"): (200, 200, 403, 403, 200, 403),
    ("GET", "/v1/stats"): (200, 200, 200, 200, 200, 403),
    ("GET", "/v1/node"): (200, 200, 200, 200, 200, 403),
    ("POST", "/v1/node/drain"): (501, 501, 403, 403, 403, 403),
    ("POST", "/v1/node/resume"): (501, 501, 403, 403, 403, 403),
    ("GET", "/healthz"): (200, 200, 200, 200, 200, 200),
    ("GET", "/readyz"): (200, 200, 200, 200, 200, 200),
    ("GET", "/metrics"): (200, 200, 200, 200, 200, 200),
    ("GET", "/openapi.json"): (200, 200, 200, 200, 200, 200),
}
COLUMNS = (
    ("admin", "r-own"),
    ("operator", "r-own"),
    ("submit", "r-own"),
    ("submit", "r-other"),
    ("read", "r-own"),
    ("nobody", "r-own"),
)

ASKER = """
import http.client, json, socket, sys
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
answers = []
for method, target, body in json.load(sys.stdin):
    connection = Connection("localhost", timeout=20)
    connection.request(method, target, body=body, headers={"Content-Type": "application/json"})
    response = connection.getresponse()
    answers.append([response.status, response.read().decode()])
    connection.close()
json.dump(answers, sys.stdout)
"""


async def ask_as(
    api: Api, uid: int, *requests: tuple[str, str, str | None], groups: tuple[int, ...] = ()
) -> list[tuple[int, str]]:
    """Asks in a process of another user."""
    done = await asyncio.to_thread(
        run_as, uid, ASKER, str(api.socket), sent=json.dumps(requests), groups=groups
    )
    assert done.returncode == 0, done.stderr
    return [(status, body) for status, body in json.loads(done.stdout)]


def run_as(
    uid: int, program: str, *arguments: str, sent: str = "", groups: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", "-I", "-c", program, *arguments],
        input=sent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        user=uid,
        group=uid,
        extra_groups=list(groups),
        cwd="/",
    )


def test_the_table_of_rights_knows_every_route() -> None:
    assert TABLE_OF_RIGHTS.keys() == {(route.method, route.path) for route in TABLE}


@needs_root
@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=lambda i: "-".join(COLUMNS[i]))
async def test_every_route_for_every_role(column: int) -> None:
    role, run_id = COLUMNS[column]
    async with serving(access=RULES, mode=0o666) as api:
        api.parts.manager.add("r-own", owner_uid=SUBMIT)
        api.parts.manager.add("r-other", owner_uid=ADMIN)
        requests = [
            (method, path.replace("{id}", run_id), _body_for(path) if method == "POST" else None)
            for method, path in TABLE_OF_RIGHTS
        ]
        answers = await ask_as(api, ROLES[role], *requests)
        seen = {asked: status for asked, (status, _) in zip(TABLE_OF_RIGHTS, answers, strict=True)}
        assert seen == {asked: row[column] for asked, row in TABLE_OF_RIGHTS.items()}
        refused = [json.loads(body) for status, body in answers if status == 403]
        assert {problem["code"] for problem in refused} <= {"forbidden"}


def _body_for(path: str) -> str:
    return json.dumps(A_RUN if path == "/v1/runs" else {})


@needs_root
async def test_somebody_who_submits_sees_only_what_is_theirs() -> None:
    async with serving(access=RULES, mode=0o666) as api:
        api.parts.manager.add("r-own", owner_uid=SUBMIT)
        api.parts.manager.add("r-other", owner_uid=ADMIN)
        listed, events, stats = await ask_as(
            api,
            SUBMIT,
            ("GET", "/v1/runs", None),
            ("GET", "/v1/events", None),
            ("GET", "/v1/stats", None),
        )
    assert [run["id"] for run in json.loads(listed[1])["runs"]] == ["r-own"]
    assert [event["subject"] for event in json.loads(events[1])["events"]] == ["r-own"]
    assert json.loads(events[1])["next_after"] == 2
    assert [run["id"] for run in json.loads(stats[1])["runs"]] == ["r-own"]


@needs_root
async def test_the_owner_of_a_run_is_who_submitted_it() -> None:
    async with serving(access=RULES, mode=0o666) as api:
        body = json.dumps({**A_RUN, "id": "r-mine"})
        first, stop = await ask_as(
            api, SUBMIT, ("POST", "/v1/runs", body), ("POST", "/v1/runs/r-mine/stop", None)
        )
        assert (first[0], stop[0]) == (201, 202)
        assert json.loads(first[1])["owner_uid"] == SUBMIT
        assert api.parts.manager.orders[0].by == f"uid:{SUBMIT}"


@needs_root
async def test_a_run_of_another_user_is_not_shown_to_who_repeats_it() -> None:
    rules = AccessRules(submit=(f"uid:{SUBMIT}", f"uid:{NOBODY}"))
    async with serving(access=rules, mode=0o666) as api:
        body = json.dumps({**A_RUN, "id": "r-1"})
        await ask_as(api, SUBMIT, ("POST", "/v1/runs", body))
        (again,) = await ask_as(api, SUBMIT, ("POST", "/v1/runs", body))
        (stranger,) = await ask_as(api, NOBODY, ("POST", "/v1/runs", body))
    assert again[0] == 200
    assert stranger[0] == 409
    assert "command" not in stranger[1]


@needs_root
async def test_a_supplementary_group_gives_its_role() -> None:
    """The name is looked up when the server starts, so a group that every system has is taken."""
    rules = AccessRules(read=("group:daemon",))
    async with serving(access=rules, mode=0o666) as api:
        daemon = grp.getgrnam("daemon").gr_gid
        (inside,) = await ask_as(api, IN_GROUP, ("GET", "/v1/node", None), groups=(GROUP, daemon))
        (outside,) = await ask_as(api, IN_GROUP, ("GET", "/v1/node", None), groups=(GROUP,))
    assert (inside[0], outside[0]) == (200, 403)


@needs_root
async def test_without_rules_only_root_may_do_anything() -> None:
    async with serving(mode=0o666) as api:
        (stranger,) = await ask_as(api, NOBODY, ("GET", "/v1/node", None))
        assert stranger[0] == 403
        assert "uid 61005" in json.loads(stranger[1])["detail"]
        assert (await api.get("/v1/node")).status == 200


@needs_root
async def test_a_socket_without_permission_is_not_even_reached() -> None:
    async with serving(mode=0o660) as api:
        program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        done = await asyncio.to_thread(run_as, NOBODY, program, str(api.socket))
        assert "PermissionError" in done.stderr


def test_a_user_may_be_named() -> None:
    me = pwd.getpwuid(os.geteuid())
    roles = look_up(AccessRules(read=(f"user:{me.pw_name}",), submit=("user:no-such-user-here",)))
    assert roles.of(me.pw_uid, ()) == {Role.ADMIN, Role.READ}

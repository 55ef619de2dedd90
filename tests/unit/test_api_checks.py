"""Places of errors, rights of roles, and the patterns that guard names."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.api import problems, wire
from executord.api.access import RIGHTS, Access, Caller, Reach, Role, Roles
from executord.api.checks import body_of, draft_of, pointer_of
from executord.api.openapi import codes_of
from executord.api.problems import ProblemError, of_error
from executord.api.routes import TABLE
from executord.core.refusals import Refusal, RefusedError

DECODER = msgspec.json.Decoder(wire.RunWanted)


@pytest.mark.parametrize(
    ("path", "pointer"),
    [("$", ""), ("$.a", "/a"), ("$.a.b[0].c", "/a/b/0/c"), ("$[3]", "/3"), ("$.env[...]", "/env")],
)
def test_a_path_becomes_a_json_pointer(path: str, pointer: str) -> None:
    assert pointer_of(path) == pointer


def code_of(raw: bytes) -> str:
    """ "" for what is accepted; anything but a problem goes through."""
    try:
        draft_of(body_of(raw, DECODER))
    except ProblemError as error:
        return error.told.problem.code
    return ""


@given(st.binary(max_size=300))
def test_no_bytes_whatever_make_anything_but_a_problem(raw: bytes) -> None:
    assert code_of(raw) in ("bad_request", "invalid_field", "")


_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9))
_LISTS = st.lists(_SCALARS, max_size=3)
_OBJECTS = st.dictionaries(st.text(max_size=5), _SCALARS | _LISTS, max_size=3)
_FIELDS = [field.name for field in msgspec.structs.fields(wire.RunWanted)]


@given(st.sampled_from(_FIELDS), _SCALARS | _LISTS | _OBJECTS)
def test_no_value_whatever_makes_anything_but_a_draft_or_a_problem(
    field: str, value: object
) -> None:
    raw = json.dumps({"command": ["a"], field: value}).encode()
    assert code_of(raw) in ("bad_request", "invalid_field", "")


@pytest.mark.parametrize("pattern", [wire.NAME_PATTERN, wire.LABEL_PATTERN, wire.RUN_ID_PATTERN])
def test_a_name_with_a_line_end_behind_it_is_no_name(pattern: str) -> None:
    assert re.match(pattern, "abc")
    assert not re.match(pattern, "abc\n")
    assert not re.match(pattern, "ab\nc")


def test_secrets_are_not_in_what_is_printed_of_a_request() -> None:
    wanted = body_of(b'{"command": ["a"], "secrets": {"A": "canary"}}', DECODER)
    assert "canary" not in repr(wanted)
    assert "canary" not in repr(draft_of(wanted))


@given(st.sets(st.sampled_from(Role)), st.sampled_from(Access))
def test_roles_add_up_and_never_take_away(roles: set[Role], access: Access) -> None:
    alone = {Caller(uid=1, gid=1, roles=frozenset({role})).reach(access) for role in roles}
    together = Caller(uid=1, gid=1, roles=frozenset(roles)).reach(access)
    if access is Access.ANYBODY or Reach.ALL in alone:
        assert together is Reach.ALL
    else:
        assert together is (Reach.OWN if Reach.OWN in alone else None)


def test_whoever_reads_may_change_nothing() -> None:
    reader = Caller(uid=1, gid=1, roles=frozenset({Role.READ}))
    assert {access for access in Access if reader.reach(access)} == {
        Access.ANYBODY,
        Access.READ_NODE,
        Access.READ_RUNS,
        Access.READ_CACHE,
    }


def test_every_kind_of_access_has_its_rights_and_admins_may_all() -> None:
    assert RIGHTS.keys() == set(Access)
    assert all(rights[Role.ADMIN] is Reach.ALL for rights in RIGHTS.values())


def test_roles_come_from_user_and_from_every_group() -> None:
    roles = Roles(
        {1: frozenset({Role.READ})}, {5: frozenset({Role.SUBMIT}), 6: frozenset({Role.OPERATOR})}
    )
    assert roles.of(1, (5,)) == {Role.READ, Role.SUBMIT}
    assert roles.of(2, (6, 7)) == {Role.OPERATOR}
    assert roles.of(2, ()) == frozenset()


@pytest.mark.parametrize("refusal", list(Refusal))
def test_every_refusal_has_a_status_and_a_title(refusal: Refusal) -> None:
    told = of_error(RefusedError(refusal, "Because."))
    assert told is not None
    assert 400 <= told.status < 600
    assert told.problem.title
    assert told.problem.code == refusal.value


def test_every_code_is_documented_at_some_route_or_before_any() -> None:
    documented = {code for route in TABLE for code in codes_of(route)}
    before_any_route = {problems.NOT_FOUND, problems.METHOD_NOT_ALLOWED}
    assert problems.STATUS_OF.keys() == problems.TITLE_OF.keys()
    assert set(problems.STATUS_OF) == documented | before_any_route


def test_an_error_that_nobody_foresaw_is_no_answer_by_itself() -> None:
    assert of_error(ZeroDivisionError()) is None

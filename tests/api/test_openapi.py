"""OpenAPI says what the socket does."""

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import jsonschema
import pytest

from executord.api.routes import TABLE
from executord.core.cloudevents import cloud_event
from executord.core.reasons import Reason
from executord.core.run import Stage, StageCost, Transition
from executord.core.states import State
from tests.fakes.api import DOCUMENT, Api, conform

OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


async def test_it_is_served_as_it_is_made(api: Api) -> None:
    assert (await api.get("/openapi.json")).json == DOCUMENT


def test_every_reference_leads_somewhere() -> None:
    references = [node["$ref"] for node in nodes(DOCUMENT) if isinstance(node.get("$ref"), str)]
    assert len(references) > 50
    for reference in references:
        name = reference.removeprefix("#/components/schemas/")
        assert name in DOCUMENT["components"]["schemas"], reference


def test_every_schema_is_one_that_a_validator_understands() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for _, _, operation in OPERATIONS:
        for parameter in operation["parameters"]:
            jsonschema.Draft202012Validator.check_schema(parameter["schema"])


def test_operations_have_names_of_their_own_and_declare_the_path_they_stand_at() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names) == len(TABLE)
    for path, _, operation in OPERATIONS:
        declared = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
        assert declared == re.findall(r"{(\w+)}", path)


def test_every_answer_has_a_true_status_a_description_and_a_content() -> None:
    for path, method, operation in OPERATIONS:
        for status, answer in operation["responses"].items():
            assert HTTPStatus(int(status))
            assert answer["description"], (path, method, status)
            kinds = set(answer["content"])
            assert kinds == {"application/problem+json"} or int(status) < 400


def test_requests_forbid_what_they_do_not_know() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    wanted = [name for name in schemas if name.endswith("Wanted")]
    assert len(wanted) >= 8
    assert all(schemas[name]["additionalProperties"] is False for name in wanted)


@pytest.mark.parametrize("broken", [{"data": "a", "data_base64": "YQ=="}, {}])
def test_a_record_has_exactly_one_form_of_its_data(broken: dict[str, str]) -> None:
    record = {"offset": 0, "stream": "stdout", "lost_bytes": 0}
    schema = {"$ref": "#/components/schemas/LogRecord"}
    conform({**record, "data": "a"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        conform({**record, **broken}, schema)


def test_a_transition_is_the_cloud_event_that_is_described() -> None:
    transition = Transition(
        run_id="r-1",
        number=2,
        seq=7,
        time=1_795_000_000.0,
        from_state=State.FINISHING,
        to_state=State.FAILED,
        reason=Reason.EXIT_CODE,
        costs=(StageCost(stage=Stage.FINISH, seconds=0.5),),
    )
    conform(cloud_event("node-1", transition), {"$ref": "#/components/schemas/CloudEvent"})

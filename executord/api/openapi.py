"""OpenAPI 3.1, made from the routes and the types of their messages."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from executord.api import problems
from executord.api.access import Access
from executord.api.answers import SCHEMA_ADDITIONS
from executord.api.wire import RUN_ID_PATTERN
from executord.core.refusals import Refusal

if TYPE_CHECKING:
    from executord.api.routes import Route

_REFERENCE = "#/components/schemas/{name}"
_EVERYWHERE = (
    Refusal.BAD_REQUEST.value,
    Refusal.INVALID_FIELD.value,
    problems.EXPECTATION_FAILED,
    problems.TOO_MANY_CONNECTIONS,
    problems.INTERNAL,
    problems.UNAVAILABLE,
)
_WITH_BODY = (
    problems.REQUEST_TIMEOUT,
    problems.BODY_TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
)
_DESCRIPTION = """\
The socket of an executord node. Times are RFC 3339 in UTC with microseconds; sizes are bytes and
durations seconds where the name says so. A field or parameter that is not known is an error.

With `follow=true` a stream is answered: NDJSON, or server-sent events where `Accept` asks for
`text/event-stream`. An empty line (NDJSON) or a comment (SSE) says that the stream is alive. A
stream that ends properly is complete; one that breaks off is resumed with the parameter of its
route, or with `Last-Event-ID`. The last server-sent event has the name `end`.
"""


def document(table: "Sequence[Route]", version: str) -> dict[str, Any]:
    schemas = _Schemas(table)
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "executord",
            "version": version,
            "summary": "Runs other people's code in containers on a compute node",
            "description": _DESCRIPTION,
        },
        "servers": [{"url": "http://localhost", "description": "over the Unix socket"}],
        "paths": paths,
        "components": {"schemas": schemas.components},
    }


def codes_of(route: "Route") -> Sequence[str]:
    """The codes of every problem that the route may answer with."""
    codes = [*_EVERYWHERE, *(refusal.value for refusal in route.refusals)]
    if route.access is not Access.ANYBODY:
        codes.append(Refusal.FORBIDDEN.value)
    if route.has_run_id:
        codes.append(Refusal.UNKNOWN_RUN.value)
    if route.body is not None:
        codes.extend(_WITH_BODY)
    if route.name == "readiness":
        codes.append(problems.NOT_READY)
    return codes


class _Schemas:
    def __init__(self, table: "Sequence[Route]") -> None:
        types: list[Any] = [problems.Problem]
        for route in table:
            types += [kind for kind in route.answers.values() if kind is not None]
            types += [*route.items, *([route.body] if route.body else [])]
        self._types = list(dict.fromkeys(types))
        self._schemas, components = msgspec.json.schema_components(
            self._types, ref_template=_REFERENCE
        )
        self.components = msgspec.json.decode(msgspec.json.encode(components))
        for name, more in SCHEMA_ADDITIONS.items():
            self.components[name].update(more)

    def of(self, kind: Any) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._schemas[self._types.index(kind)]
        return found


def _operation(route: "Route", schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": _responses(route, schemas),
    }
    if route.body is not None:
        required = any(field.required for field in msgspec.structs.fields(route.body))
        operation["requestBody"] = {
            "required": required,
            "content": {"application/json": {"schema": schemas.of(route.body)}},
        }
    return operation


def _path_parameters(route: "Route") -> list[dict[str, Any]]:
    if not route.has_run_id:
        return []
    schema = {"type": "string", "pattern": RUN_ID_PATTERN}
    return [{"name": "id", "in": "path", "required": True, "schema": schema}]


def _query_parameters(route: "Route") -> list[dict[str, Any]]:
    schema = msgspec.json.schema(route.query)
    definitions = schema["$defs"]
    properties = definitions[route.query.__name__]["properties"]
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": _inlined(kind, definitions)}
        for name, kind in properties.items()
    ]
    if route.items:
        parameters.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "description": "What a reader of server-sent events saw last.",
                "schema": {"type": "string", "maxLength": 32},
            }
        )
    return parameters


def _inlined(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Query types are small and refer to nothing but enumerations."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    inlined: Mapping[str, Any] = definitions[reference.rsplit("/", 1)[1]]
    return inlined


def _responses(route: "Route", schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, kind in sorted(route.answers.items()):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": _content(route, kind, schemas),
        }
    by_status: dict[int, list[str]] = {}
    for code in codes_of(route):
        by_status.setdefault(problems.STATUS_OF[code].value, []).append(code)
    for status, codes in sorted(by_status.items()):
        names = sorted(set(codes))
        told = "; ".join(f"`{code}`: {problems.TITLE_OF[code]}" for code in names)
        responses[str(status)] = {
            "description": told,
            "content": {problems.CONTENT_TYPE: {"schema": schemas.of(problems.Problem)}},
        }
    return responses


def _content(route: "Route", kind: Any, schemas: _Schemas) -> dict[str, Any]:
    if kind is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content: dict[str, Any] = {"application/json": {"schema": schemas.of(kind)}}
    if route.items:
        pieces = [schemas.of(item) for item in route.items]
        piece = pieces[0] if len(pieces) == 1 else {"anyOf": pieces}
        content["application/x-ndjson"] = {"schema": piece}
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content

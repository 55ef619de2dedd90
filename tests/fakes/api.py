"""A real ApiServer over fakes, and a client that holds every answer against OpenAPI."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jsonschema

from executord.api import openapi
from executord.api.access import AccessRules
from executord.api.limits import Limits
from executord.api.routes import TABLE
from executord.api.server import ApiServer
from tests.fakes.services import FakeParts

DOCUMENT: dict[str, Any] = openapi.document(TABLE, "0.1.0")
QUICK = Limits(
    head_seconds=0.5,
    body_seconds=0.5,
    idle_seconds=1.0,
    write_seconds=1.0,
    heartbeat_seconds=0.2,
)
A_RUN: Mapping[str, Any] = {"command": ["true"], "environment": {"image": "python:3.11"}}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        assert self.headers["Content-Type"] == "application/problem+json"
        return str(self.json["code"])


@dataclass
class Api:
    server: ApiServer
    socket: Path
    parts: FakeParts
    session: aiohttp.ClientSession

    async def get(self, target: str, **headers: str) -> Answer:
        return await self.ask("GET", target, headers=headers)

    async def post(self, target: str, body: Any = None) -> Answer:
        content = None if body is None else json.dumps(body).encode()
        return await self.ask(
            "POST", target, content=content, headers={"Content-Type": "application/json"}
        )

    async def ask(
        self,
        method: str,
        target: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Raises where the answer is not what OpenAPI says."""
        async with self.session.request(
            method, f"http://localhost{target}", data=content, headers=headers
        ) as response:
            answer = Answer(response.status, response.headers, await response.read())
        check_documented(method, target, answer)
        return answer

    def follow(self, target: str, **headers: str) -> Any:
        return self.session.get(f"http://localhost{target}", headers=headers)

    async def raw(self, data: bytes, *, seconds: float = 5.0) -> bytes:
        """Sends bytes as they are; what comes back until the server closes."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(data)
            async with asyncio.timeout(seconds):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    *,
    access: AccessRules | None = None,
    limits: Limits = QUICK,
    mode: int = 0o660,
    listen: str = "",
) -> AsyncIterator[Api]:
    with tempfile.TemporaryDirectory(prefix="api-") as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101 - other users have to get through
        socket = Path(directory, "executord.sock")
        parts = FakeParts()
        server = ApiServer(
            services=parts.services,
            socket_path=socket,
            socket_mode=mode,
            access=access,
            limits=limits,
            listen=listen,
        )
        await server.start()
        session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket)))
        try:
            yield Api(server, socket, parts, session)
        finally:
            await session.close()
            await server.stop()


def check_documented(method: str, target: str, answer: Answer) -> None:
    """A path that OpenAPI has must answer with a status and a content that it has, too."""
    operation = _operation(method, urlsplit(target).path)
    if operation is None:
        assert answer.status in (404, 405), answer
        return
    documented = operation["responses"].get(str(answer.status))
    assert documented, f"{method} {target}: {answer.status} is not documented: {answer.body!r:.300}"
    kind = answer.headers["Content-Type"].partition(";")[0]
    assert kind in documented["content"], f"{method} {target}: {kind} is not documented"
    schema = documented["content"][kind]["schema"]
    if kind in ("application/json", "application/problem+json"):
        conform(answer.json, schema)
    elif kind == "application/x-ndjson":
        for line in answer.body.splitlines():
            if line:
                conform(json.loads(line), schema)


def conform(value: Any, schema: Mapping[str, Any]) -> None:
    jsonschema.Draft202012Validator(
        {**schema, "components": DOCUMENT["components"]},
        format_checker=jsonschema.FormatChecker(),
    ).validate(value)


def _operation(method: str, path: str) -> Mapping[str, Any] | None:
    parts = path.split("/")
    if path.startswith("/v1/runs/") and len(parts) > 3:
        parts[3] = "{id}"
    found: Mapping[str, Any] | None = DOCUMENT["paths"].get("/".join(parts), {}).get(method.lower())
    return found

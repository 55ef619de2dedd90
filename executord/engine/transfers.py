"""Pulls, pushes and builds: long calls whose replies are streams."""

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager

import aiohttp

from executord.core.reasons import Fault, FaultError, Reason
from executord.engine import errors
from executord.engine.address import checked_reference, split_tag
from executord.engine.breaker import Breaker
from executord.engine.spec import dockerfile_context
from executord.engine.streams import BuildOutput, TransferProgress, stream_error
from executord.engine.wire import StalledError, StatusError, Wire
from executord.ports import BuildSpec, BuildStep, Progress

_STALL_SECONDS = 180.0
_NO_CREDENTIALS = base64.urlsafe_b64encode(b"{}").decode()


class Transfers:
    """They take as long as the engine answers pings; closing a generator ends its work there."""

    def __init__(self, wire: Wire, breaker: Breaker) -> None:
        self._wire = wire
        self._breaker = breaker

    def pull(self, reference: str) -> AsyncGenerator[Progress, None]:
        repository, tag = split_tag(checked_reference(reference))
        params = {"fromImage": repository, "tag": tag}
        return self._transfer("pull", f"pull image `{reference}`", "images/create", params)

    def push(self, reference: str) -> AsyncGenerator[Progress, None]:
        repository, tag = split_tag(checked_reference(reference))
        path = f"images/{repository}/push"
        return self._transfer("push", f"push image `{reference}`", path, {"tag": tag})

    async def build(self, spec: BuildSpec) -> AsyncGenerator[BuildStep, None]:
        params = {
            "t": checked_reference(spec.tag),
            "rm": "1",
            "forcerm": "1",
            "labels": json.dumps(dict(spec.labels)),
            "buildargs": json.dumps(dict(spec.build_args)),
        }
        headers = {"Content-Type": "application/x-tar"}
        context = dockerfile_context(spec.dockerfile)
        doing = f"build image `{spec.tag}`"
        output = BuildOutput()
        async with (
            self._streaming(doing, errors.of_build_request),
            self._wire.stream("build", params=params, headers=headers, data=context) as reply,
            aclosing(self._wire.json_lines(reply)) as events,
        ):
            async for event in events:
                if step := output.feed(event):
                    yield step
        if not output.has_ended:
            raise errors.unavailable(doing, "the engine hung up before the end.")

    async def _transfer(
        self, what: str, doing: str, path: str, params: Mapping[str, str]
    ) -> AsyncGenerator[Progress, None]:
        headers = {"X-Registry-Auth": _NO_CREDENTIALS}
        transfer = TransferProgress(what)
        stall = _STALL_SECONDS
        async with (
            self._streaming(doing, errors.of_registry),
            self._wire.stream(path, params=params, headers=headers, stall_seconds=stall) as reply,
            aclosing(self._wire.json_lines(reply, stall_seconds=stall)) as events,
        ):
            async for event in events:
                if error := stream_error(event):
                    raise errors.of_registry(doing, 0, error[1])
                yield transfer.feed(event)
        if not transfer.has_ended:
            raise errors.unavailable(doing, "the engine hung up before the end.")

    @asynccontextmanager
    async def _streaming(
        self, doing: str, translate: Callable[[str, int, str], FaultError]
    ) -> AsyncIterator[None]:
        self._breaker.check(doing)
        try:
            yield
        except StatusError as error:
            raise translate(doing, error.status, error.message) from error
        except StalledError as error:
            silence = f"nothing moved for {_STALL_SECONDS:.0f} seconds."
            raise FaultError(
                Fault(Reason.REGISTRY_UNAVAILABLE, f"Could not {doing}: {silence}")
            ) from error
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            raise errors.of_exception(doing, error) from error

"""A sink that posts CloudEvents batches.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec

from executord.core.cloudevents import CloudEvent
from executord.ports import Clock
from executord.upstream.headers import HeadersError, HeadersFile
from executord.upstream.sinks import Again, Delivered, Refused, Verdict

_MEDIA_TYPE = "application/cloudevents-batch+json; charset=utf-8"
_TRY_AGAIN = frozenset({408, 425, 429})
# These can mean the address or the credentials as well as the event.
_PERHAPS_ALL = frozenset({401, 403, 404, 405, 407, 410, 411, 415, 421, 426})
_READ_BYTES = 4096
_QUOTED_CHARACTERS = 300


class _Answer(NamedTuple):
    status: int
    retry_after: str
    text: str


class HttpSink:
    """`url` gets a POST for each batch; any 2xx is an acknowledgement of all of it.

    Network trouble, time-outs, 3xx, 408, 425, 429 and 5xx mean later. Any other 4xx refuses the
    batch, unless it is one that may refuse this node altogether (a token that has run out, a wrong
    address) and an empty batch gets it too: then it means later as well, and no run is at fault.
    """

    def __init__(
        self,
        *,
        url: str,
        clock: Clock,
        headers_file: Path | None = None,
        connect_seconds: float = 10.0,
        total_seconds: float = 30.0,
        make_connector: Callable[[], aiohttp.BaseConnector] | None = None,
    ) -> None:
        self._url = url
        self._clock = clock
        self._headers = HeadersFile(headers_file) if headers_file else None
        self._timeout = aiohttp.ClientTimeout(total=total_seconds, connect=connect_seconds)
        self._make_connector = make_connector
        self._session: aiohttp.ClientSession | None = None

    async def deliver(self, events: Sequence[CloudEvent]) -> Verdict:
        answer = await self._post(events)
        if isinstance(answer, Again):
            return answer
        if answer.status in _PERHAPS_ALL and await self._refuses_everything(answer.status):
            return Again(why=f"{self._said(answer)} It refuses an empty batch too.")
        if 400 <= answer.status < 500 and answer.status not in _TRY_AGAIN:
            return Refused(why=self._said(answer))
        if 200 <= answer.status < 300:
            return Delivered()
        return Again(why=self._said(answer), after_seconds=self._seconds(answer.retry_after))

    async def close(self) -> None:
        if self._session:
            await self._session.close()
            self._session = None

    async def _refuses_everything(self, status: int) -> bool:
        answer = await self._post(())
        return isinstance(answer, Again) or answer.status == status

    async def _post(self, events: Sequence[CloudEvent]) -> _Answer | Again:
        try:
            headers = await asyncio.to_thread(self._headers.read) if self._headers else {}
            session = self._session = self._session or self._new_session()
            async with session.post(
                self._url,
                data=msgspec.json.encode(events),
                headers={**headers, "Content-Type": _MEDIA_TYPE},
                allow_redirects=False,
            ) as response:
                body = await response.content.read(_READ_BYTES)
                retry_after = response.headers.get("Retry-After", "")
                return _Answer(response.status, retry_after, _quotable(body))
        except HeadersError as error:
            return Again(why=str(error))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # The type alone where there is no text; headers are in none of them.
            return Again(why=f"The upstream cannot be reached: {_named(error)}")

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self._make_connector() if self._make_connector else None,
            timeout=self._timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "executord"},
        )

    def _said(self, answer: _Answer) -> str:
        said = f"The upstream answered {answer.status}"
        return f"{said}: {answer.text}." if answer.text else f"{said}."

    def _seconds(self, retry_after: str) -> float | None:
        """RFC 9110, section 10.2.3: a number of seconds or a date. None where it is neither."""
        if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10:
            return float(retry_after)
        try:
            date = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        aware = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, aware.timestamp() - self._clock.now())


def _named(error: Exception) -> str:
    text = _quotable(str(error).encode("utf-8", "replace"))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _quotable(body: bytes) -> str:
    """Somebody else's text, made safe for a log line."""
    text = body.decode("utf-8", "replace")[:_QUOTED_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in text).strip()

"""The log: named facts on stderr, as JSON lines for machines or in colour for people.

The standard library's loggers (those of aiohttp, asyncio, …) come out the same way. Whatever the
form, a value whose key speaks of a secret is replaced, and no local variables of a traceback are
shown, since those may hold one too.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from executord.config import LogSettings

HIDDEN = "***"

_MOST_DEPTH = 8
_SECRET_KEY = re.compile(
    r"secret|passw(or)?d|passphrase|token|credential|authorization|cookie"
    r"|(api|access|private|signing)_?-?key",
    re.IGNORECASE,
)
_SECRET_IN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Each connection would be a line, at the level of our own facts.
_QUIETER = {"aiohttp.access": logging.WARNING, "asyncio": logging.WARNING}


def configure(settings: LogSettings, *, stream: TextIO | None = None) -> None:
    """Send structlog and the standard library's logging to `stream` (stderr), in one form.

    Safe to call again: what was configured before is replaced.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(settings, colours=target.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name, level in _QUIETER.items():
        logging.getLogger(name).setLevel(max(level, root.level))


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace every value, at any depth, whose key is named like a secret; also in URLs."""
    return {key: _hidden(key, value, _MOST_DEPTH) for key, value in event.items()}


def _hidden(key: object, value: object, depth: int) -> object:
    if isinstance(key, str) and _SECRET_KEY.search(key):
        return HIDDEN
    match value:
        case str():
            return _SECRET_IN_URL.sub(rf"\g<scheme>{HIDDEN}@", value)
        case Mapping() | list() | tuple() | set() | frozenset() if depth == 0:
            return "…"
        case Mapping():
            return {str(k): _hidden(k, v, depth - 1) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_hidden("", each, depth - 1) for each in value]
        case _:
            return value


def _tame(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Terminals act on control characters, and anybody's text may end in a log."""
    return {
        key: _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)
        if isinstance(value, str)
        else value
        for key, value in event.items()
    }


def _rendering(settings: LogSettings, *, colours: bool) -> list[Processor]:
    if settings.format == "console":
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=plain, repr_native_str=True
        )
        return [hide_secrets, _tame, renderer]
    return [
        structlog.processors.format_exc_info,
        hide_secrets,
        structlog.processors.JSONRenderer(default=repr),
    ]

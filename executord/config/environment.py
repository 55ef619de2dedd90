"""What the daemon takes from its environment: how to log, and what the service manager offers."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]

LOG_FORMATS = ("json", "console")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_FIRST_PASSED_FD = 3


class EnvironmentVariableError(Exception):
    """A variable has a value that means nothing; the text names it and what is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    format: LogFormat
    level: LogLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """What a service manager passed on: see sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

    `watchdog_seconds` is the time within which it wants to hear from us, None if it does not.
    """

    notify_socket: str | None
    listen_fds: tuple[int, ...]
    watchdog_seconds: float | None


def log_settings(environ: Mapping[str, str] | None = None) -> LogSettings:
    """From EXECUTORD_LOG and EXECUTORD_LOG_LEVEL. Without them: JSON unless stderr is a terminal,
    level info. Raises EnvironmentVariableError.
    """
    env = os.environ if environ is None else environ
    by_default = "console" if sys.stderr.isatty() else "json"
    chosen = _one_of(env, "EXECUTORD_LOG", LOG_FORMATS, by_default)
    level = _one_of(env, "EXECUTORD_LOG_LEVEL", LOG_LEVELS, "info")
    return LogSettings(format=cast("LogFormat", chosen), level=cast("LogLevel", level))


def service_manager(
    environ: Mapping[str, str] | None = None, *, pid: int | None = None
) -> ServiceManager:
    """What is meant for this very process; a child that inherited the variables gets nothing."""
    env = os.environ if environ is None else environ
    own = str(os.getpid() if pid is None else pid)
    fds = _whole(env, "LISTEN_FDS") if env.get("LISTEN_PID") == own else 0
    watchdog = _whole(env, "WATCHDOG_USEC") if env.get("WATCHDOG_PID", own) == own else 0
    return ServiceManager(
        notify_socket=env.get("NOTIFY_SOCKET") or None,
        listen_fds=tuple(range(_FIRST_PASSED_FD, _FIRST_PASSED_FD + fds)),
        watchdog_seconds=watchdog / 1_000_000 if watchdog else None,
    )


def _one_of(env: Mapping[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    chosen = env.get(name, "").lower() or default
    if chosen not in choices:
        raise EnvironmentVariableError(
            f"{name} is {env[name]!r}; it has to be one of {', '.join(choices)}"
        )
    return chosen


def _whole(env: Mapping[str, str], name: str) -> int:
    digits = env.get(name, "")
    return int(digits) if digits.isascii() and digits.isdecimal() else 0

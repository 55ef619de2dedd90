"""How long and how much a client may take."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`head_seconds` and `body_seconds` bound how slowly a request may arrive, `write_seconds` how
    slowly an answer may be taken, `idle_seconds` how long a connection may say nothing.

    A stream says every `heartbeat_seconds` that it is alive.
    """

    connections_per_uid: int = 64
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    write_seconds: float = 30.0
    idle_seconds: float = 75.0
    heartbeat_seconds: float = 15.0
    finish_seconds: float = 5.0
    """For what was begun by a POST when the daemon leaves."""

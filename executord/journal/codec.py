"""Runs and transitions as rows: JSON of the core's dataclasses, and a CRC-32 over all of the row.

SQLite's own checks find one flipped bit in twenty, the checksum nearly all.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from executord.core.run import Run, Transition

_encode = msgspec.json.Encoder().encode
_decode_run = msgspec.json.Decoder(Run).decode
_decode_transition = msgspec.json.Decoder(Transition).decode
_decode_fact = msgspec.json.Decoder(dict[str, Any]).decode


class DamagedError(Exception):
    """A row cannot be read; the message says what is wrong with it."""


class RunRow(NamedTuple):
    """A row of `runs`, but for `accepted`, which SQLite counts."""

    id: str
    state: str
    project: str
    live: int
    clean: int
    transitions: int
    attempt: int
    accepted_at: float
    ended_at: float | None
    fingerprint: str
    crc: int
    body: bytes


class TransitionRow(NamedTuple):
    """A row of `transitions`, but for `seq` and `delivered`."""

    run_id: str
    number: int
    time: float
    from_state: str | None
    to_state: str
    crc: int
    body: bytes


class FactRow(NamedTuple):
    kind: str
    key: str
    crc: int
    body: bytes


def run_row(run: Run, fingerprint: str) -> RunRow:
    """`fingerprint` is kept from the acceptance on; an update gives "" and leaves it alone."""
    return _sealed(
        RunRow(
            id=run.id,
            state=run.state.value,
            project=run.assignment.project,
            live=int(not run.is_over),
            clean=int(run.is_over and run.clean),
            transitions=run.transitions,
            attempt=run.attempt,
            accepted_at=float(run.accepted_at),
            ended_at=None if run.ended_at is None else float(run.ended_at),
            fingerprint=fingerprint,
            crc=0,
            body=_json(run),
        )
    )


def _sealed(row: RunRow) -> RunRow:
    return row._replace(crc=_run_crc(row))


def run_of(row: RunRow) -> Run:
    """DamagedError where it is not what was written."""
    if _run_crc(row) != row.crc:
        raise DamagedError("its checksum is wrong")
    try:
        return _decode_run(row.body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DamagedError(f"its content is not a run: {error}") from error


def transition_row(transition: Transition) -> TransitionRow:
    row = TransitionRow(
        run_id=transition.run_id,
        number=transition.number,
        time=float(transition.time),
        from_state=transition.from_state and transition.from_state.value,
        to_state=transition.to_state.value,
        crc=0,
        body=_json(transition),
    )
    return row._replace(crc=_transition_crc(row))


def transition_of(seq: int, row: TransitionRow) -> Transition:
    """DamagedError where it is not what was written."""
    if _transition_crc(row) != row.crc:
        raise DamagedError("its checksum is wrong")
    try:
        return replace(_decode_transition(row.body), seq=seq)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DamagedError(f"its content is not a transition: {error}") from error


def fact_row(kind: str, key: str, value: Mapping[str, object]) -> FactRow:
    body = _json(value)
    return FactRow(kind, key, _crc(f"{kind}\0{key}", body), body)


def fact_of(row: FactRow) -> dict[str, object]:
    """DamagedError where it is not what was written."""
    if _crc(f"{row.kind}\0{row.key}", row.body) != row.crc:
        raise DamagedError("its checksum is wrong")
    try:
        return _decode_fact(row.body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DamagedError(f"its content is not an object: {error}") from error


def _run_crc(row: RunRow) -> int:
    """Not over the fingerprint: it stands by itself, and an update does not know it."""
    return _crc("\0".join(map(str, row[:9])), row.body)


def _transition_crc(row: TransitionRow) -> int:
    return _crc("\0".join(map(str, row[:5])), row.body)


def _crc(columns: str, body: object) -> int:
    if not isinstance(body, bytes):  # a flipped bit can turn a column into another type
        return -1
    return crc32(body, crc32(columns.encode("utf-8", "surrogateescape")))


def _json(value: object) -> bytes:
    """Names of files may hold bytes that are not UTF-8; those are kept as people write them."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_printable(msgspec.to_builtins(value)))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value

"""`executorctl cache simulate`: what a cache of another size would have done, on recorded uses."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from executord.cli.errors import CliError
from executord.cli.session import Command, Session, pass_session
from executord.cli.units import duration, plural, size

if TYPE_CHECKING:
    from executord.core.cache_simulation import Outcome
    from executord.core.cache_trace import Use

_LONG_SECONDS = 600.0
_SHARES = (0.1, 0.25, 0.5, 1.2)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _size(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[int]:
    return [_bytes(value) for value in values]


def _bytes(text: str) -> int:
    number = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        found = int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        found = 0
    if found <= 0:
        raise click.BadParameter(f"{text!r} is no size; write for instance 50GiB")
    return found


@click.command("simulate", cls=Command)
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Replay this file (JSON lines) instead of what the daemon has recorded.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="SIZE",
    callback=_size,
    help="A size of the cache to try, such as 50GiB; may be repeated.",
)
@pass_session
def simulate_command(session: Session, *, trace_file: Path | None, sizes: list[int]) -> None:
    """Replay recorded uses against caches of other sizes.

    For each size: plain LRU, what the daemon does, and what no cache could beat.
    """
    from executord.core.cache_simulation import (  # noqa: PLC0415 - not for all
        Trace,
        bound,
        largest_bytes,
        simulate,
    )

    uses = list(_from_file(trace_file) if trace_file else _from_daemon(session))
    if not uses:
        raise CliError("There is no recorded use yet: run something with files first.")
    trace = Trace(uses)
    largest = largest_bytes(trace)  # what is in use stays, even in a cache that is too small for it
    outcomes = []
    for size_bytes in sizes or [max(1, int(trace.bytes * share)) for share in _SHARES]:
        outcomes += [
            simulate(trace, size_bytes=size_bytes, policy="lru"),
            simulate(trace, size_bytes=size_bytes, policy="worth"),
            replace(bound(trace, size_bytes=size_bytes + largest), size_bytes=size_bytes),
        ]
    if session.as_json:
        session.output.json(
            {
                "uses": len(trace.uses),
                "trees": len(trace.trees),
                "all_bytes": trace.bytes,
                "outcomes": [_as_object(outcome) for outcome in outcomes],
            }
        )
        return
    session.output.note(
        f"{plural(len(trace.uses), 'use')} of {plural(len(trace.trees), 'tree')}; "
        f"all of it together takes {size(trace.bytes)}."
    )
    _draw(session, outcomes)


def _from_file(path: Path) -> "Iterator[Use]":
    from executord.core.cache_trace import BadTraceError, decode  # noqa: PLC0415 - not for all

    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield decode(line)
            except BadTraceError as error:
                raise CliError(f"{path}:{number}: {error}") from error


def _from_daemon(session: Session) -> "Iterator[Use]":
    from executord.core.cache_trace import from_object  # noqa: PLC0415 - not for all

    answer = session.client.get("/v1/cache/trace", deadline_seconds=_LONG_SECONDS)
    yield from map(from_object, answer.get("uses") or ())


def _as_object(outcome: "Outcome") -> dict[str, Any]:
    return {
        **asdict(outcome),
        "run_hit_ratio": outcome.run_ratio,
        "file_hit_ratio": outcome.file_ratio,
        "byte_hit_ratio": outcome.byte_ratio,
    }


def _draw(session: Session, outcomes: "Sequence[Outcome]") -> None:
    names = {
        "lru": "least recently used",
        "worth": "executord",
        "clairvoyant bound": "best possible",
    }
    session.output.table(
        ("size", "policy", "runs", "files", "bytes", "cost", "evictions"),
        [
            (
                size(outcome.size_bytes),
                names[outcome.policy],
                f"{outcome.run_ratio:.1%}",
                f"{outcome.file_ratio:.1%}",
                f"{outcome.byte_ratio:.1%}",
                duration(outcome.seconds),
                f"{outcome.evictions:,}" if outcome.policy in ("lru", "worth") else "",
            )
            for outcome in outcomes
        ],
        right=("size", "runs", "files", "bytes", "cost", "evictions"),
    )

"""One row a figure: what was measured, beside what, and whether the aim is met."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`ratio` is ours over the peer's. `met` is None where there is no aim to meet."""

    name: str
    figure: float
    unit: str
    peer: str = ""
    peer_figure: float | None = None
    ratio: float | None = None
    aim: str = ""
    met: bool | None = None


HEADINGS = ("what", "executord", "beside", "ratio", "aim", "met")


def as_markdown(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    beside = "" if row.peer_figure is None else f"{row.peer}: {_number(row.peer_figure)} {row.unit}"
    met = "" if row.met is None else ("yes" if row.met else "no")
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    return (row.name, f"{_number(row.figure)} {row.unit}", beside, ratio, row.aim, met)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

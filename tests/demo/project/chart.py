"""Draws the two pictures that tell whether a classifier is any good, as one SVG file."""

from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[float, float]

SIDE = 300
MARGIN = 56
INK, SOFT, BLUE, ORANGE = "#1f2933", "#9aa5b1", "#2166ac", "#d6604d"


class Panel(NamedTuple):
    """One square plot of values from 0 to 1."""

    title: str
    x_label: str
    y_label: str
    left: int

    def place(self, point: Point) -> Point:
        return self.left + point[0] * SIDE, MARGIN + (1 - point[1]) * SIDE

    def frame(self) -> list[str]:
        left, bottom, middle = self.left, MARGIN + SIDE, self.left + SIDE / 2
        parts = [
            _box(left, MARGIN, SIDE, SIDE, "#fff", stroke=SOFT),
            _text(self.title, middle, MARGIN - 22, size=16, weight="bold"),
            _text(self.x_label, middle, bottom + 40),
            _text(self.y_label, left - 38, MARGIN + SIDE / 2, turned=True),
            self.line([(0, 0), (1, 1)], SOFT, dashes="5 4"),
        ]
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            x, _ = self.place((tick, 0))
            _, y = self.place((0, tick))
            parts.append(f'<path d="M{x} {bottom}v5M{left} {y}h-5" stroke="{SOFT}"/>')
            parts.append(_text(f"{tick:g}", x, bottom + 20, size=11))
            parts.append(_text(f"{tick:g}", left - 8, y + 4, size=11, anchor="end"))
        return parts

    def line(self, points: Sequence[Point], colour: str, *, dashes: str = "") -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.place, points))
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'

    def dots(self, points: Sequence[Point], colour: str) -> list[str]:
        return [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
            for x, y in map(self.place, points)
        ]


def draw(*, roc: Sequence[Point], calibration: Sequence[Point], auc: float) -> str:
    """`roc`: (false, true positive rate); `calibration`: (forecast, seen) shares of leavers."""
    width, height = 2 * (SIDE + 2 * MARGIN), SIDE + 2 * MARGIN + 10
    left = Panel("Who leaves? (ROC)", "false alarms", "leavers found", MARGIN + 8)
    right = Panel("Can the forecast be trusted?", "forecast", "really left", MARGIN * 3 + SIDE + 8)
    x, y = left.place((0.97, 0.06))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        _box(0, 0, width, height, "#f7f9fb"),
        *left.frame(),
        left.line(roc, BLUE),
        _text(f"AUC {auc:.3f}", x, y, size=14, anchor="end", colour=BLUE),
        *right.frame(),
        right.line(calibration, ORANGE),
        *right.dots(calibration, ORANGE),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _box(x: int, y: int, width: int, height: int, fill: str, *, stroke: str = "none") -> str:
    size = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<rect {size} fill="{fill}" stroke="{stroke}"/>'


def _text(
    content: str,
    x: float,
    y: float,
    *,
    size: int = 13,
    weight: str = "normal",
    anchor: str = "middle",
    colour: str = INK,
    turned: bool = False,
) -> str:
    style = f'font-family="sans-serif" font-size="{size}" font-weight="{weight}" fill="{colour}"'
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f"<text {place} {style}{turn}>{content}</text>"

"""The demo's last page: four runs side by side, what each stage cost and what the cache spared."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

STAGES = ("queue", "prepare", "image", "start", "run", "finish")
COLOURS = {"Succeeded": "green", "Failed": "red", "Stopped": "yellow", "Error": "bold red"}


def print_comparison(runs: Sequence[dict[str, Any]]) -> None:
    """Fits into 80 columns."""
    table = Table(
        title="Milliseconds of each stage; project files from cache, store and run",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for title in ("run", "end"):
        table.add_column(title, no_wrap=True)
    for title in (*STAGES, "cached", "fetched", "sent"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in runs:
        colour = COLOURS.get(run["state"], "")
        table.add_row(
            run["id"],
            f"[{colour}]{run['state']}[/]",
            *(_milliseconds(run, stage) for stage in STAGES),
            _files(cost_of(run, "prepare"), "from_cache"),
            _files(cost_of(run, "prepare"), "fetched"),
            _files(cost_of(run, "finish"), "sent"),
        )
    Console().print(table)


def cost_of(run: dict[str, Any], stage: str) -> dict[str, Any]:
    """The stage's cost as the run tells it; an empty one where the stage never was."""
    found = [cost for cost in run["costs"] if cost["stage"] == stage]
    return found[-1] if found else {}


def _milliseconds(run: dict[str, Any], stage: str) -> str:
    seconds = cost_of(run, stage).get("seconds")
    return "-" if seconds is None else f"{seconds * 1000:,.0f}"


def _files(cost: dict[str, Any], kind: str) -> str:
    return str(cost.get(f"files_{kind}") or "-")

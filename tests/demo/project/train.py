"""Trains a churn model by gradient descent, tells how good it is, and keeps what it found.

Reads `params.json` and `data/churn.csv`; writes `results/` and `dominostats.json`. Results are
written as it goes, so that a run that is stopped leaves its best model so far.
"""

import argparse
import csv
import itertools
import json
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chart  # type: ignore[import-not-found]  # beside this file, where Python finds it

RESULTS = Path("results")
NUMBERS = ("months", "monthly_fee", "gigabytes", "support_calls", "late_payments", "contract")
PLANS = ("basic", "plus", "family")
NO_DATA = 3
REPORT_EVERY = 40

Row = list[float]
Point = tuple[float, float]


class Customers(NamedTuple):
    rows: list[Row]
    churned: list[int]


class Model(NamedTuple):
    weights: list[float]
    bias: float

    def forecast(self, row: Row) -> float:
        score = self.bias + sum(w * x for w, x in zip(self.weights, row, strict=True))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def read_customers(path: Path) -> Customers:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        print(f"no data set at {path}: was it pushed with the project?", file=sys.stderr)
        sys.exit(NO_DATA)
    rows = [
        [float(line[name]) for name in NUMBERS] + [float(line["plan"] == plan) for plan in PLANS]
        for line in lines
    ]
    return Customers(rows, [int(line["churned"]) for line in lines])


def standardise(rows: Sequence[Row]) -> list[Row]:
    columns = list(zip(*rows, strict=True))
    means = [math.fsum(column) / len(column) for column in columns]
    spreads = [
        math.sqrt(math.fsum((x - mean) ** 2 for x in column) / len(column)) or 1.0
        for column, mean in zip(columns, means, strict=True)
    ]
    return [
        [(x - mean) / spread for x, mean, spread in zip(row, means, spreads, strict=True)]
        for row in rows
    ]


def split(customers: Customers, share: float, seed: int) -> tuple[Customers, Customers]:
    order = list(range(len(customers.rows)))
    random.Random(seed).shuffle(order)
    cut = round(len(order) * share)

    def pick(numbers: list[int]) -> Customers:
        return Customers(
            [customers.rows[n] for n in numbers], [customers.churned[n] for n in numbers]
        )

    return pick(order[cut:]), pick(order[:cut])


def improve(model: Model, data: Customers, *, learning_rate: float, l2: float) -> Model:
    """One epoch: every customer seen once, in one step down the slope."""
    slopes = [0.0] * len(model.weights)
    bias_slope = 0.0
    for row, churned in zip(data.rows, data.churned, strict=True):
        miss = model.forecast(row) - churned
        bias_slope += miss
        for n, x in enumerate(row):
            slopes[n] += miss * x
    size = len(data.rows)
    return Model(
        [
            w - learning_rate * (slope / size + l2 * w)
            for w, slope in zip(model.weights, slopes, strict=True)
        ],
        model.bias - learning_rate * bias_slope / size,
    )


def roc_curve(forecasts: Sequence[float], churned: Sequence[int]) -> list[Point]:
    leavers = sum(churned) or 1
    stayers = len(churned) - sum(churned) or 1
    found = alarms = 0
    points = [(0.0, 0.0)]
    for _, left in sorted(zip(forecasts, churned, strict=True), reverse=True):
        found += left
        alarms += 1 - left
        points.append((alarms / stayers, found / leavers))
    return points


def area_below(points: Sequence[Point]) -> float:
    return sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in itertools.pairwise(points))


def calibration_of(forecasts: Sequence[float], churned: Sequence[int]) -> list[Point]:
    tenths: list[list[tuple[float, int]]] = [[] for _ in range(10)]
    for forecast, left in zip(forecasts, churned, strict=True):
        tenths[min(9, int(forecast * 10))].append((forecast, left))
    return [
        (sum(f for f, _ in group) / len(group), sum(left for _, left in group) / len(group))
        for group in tenths
        if len(group) >= 5
    ]


def evaluate(model: Model, test: Customers, threshold: float) -> dict[str, float]:
    forecasts = [model.forecast(row) for row in test.rows]
    right = [(f >= threshold) == bool(c) for f, c in zip(forecasts, test.churned, strict=True)]
    losses = [-math.log(f if c else 1 - f) for f, c in zip(forecasts, test.churned, strict=True)]
    return {
        "auc": round(area_below(roc_curve(forecasts, test.churned)), 4),
        "accuracy": round(sum(right) / len(right), 4),
        "log_loss": round(math.fsum(losses) / len(losses), 4),
    }


def write(path: Path, content: str) -> None:
    """All or nothing, so that being stopped at any moment leaves whole files."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(content, encoding="utf-8")
    aside.replace(path)


def keep(model: Model, metrics: dict[str, float], epoch: int, params: dict[str, Any]) -> None:
    names = [*NUMBERS, *(f"plan={plan}" for plan in PLANS)]
    weights = {name: round(w, 4) for name, w in zip(names, model.weights, strict=True)}
    kept = {"epoch": epoch, "bias": round(model.bias, 4), "weights": weights}
    write(RESULTS / "model.json", json.dumps(kept, indent=2) + "\n")
    found = {"epoch": epoch, "params": params, **metrics}
    write(RESULTS / "metrics.json", json.dumps(found, indent=2) + "\n")


def train(params: dict[str, Any], training: Customers, test: Customers) -> Model:
    model = Model([0.0] * len(training.rows[0]), 0.0)
    epochs = int(params["epochs"])
    for epoch in range(1, epochs + 1):
        model = improve(model, training, learning_rate=params["learning_rate"], l2=params["l2"])
        if epoch % REPORT_EVERY == 0 or epoch == epochs:
            metrics = evaluate(model, test, params["threshold"])
            keep(model, metrics, epoch, params)
            told = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            print(f"epoch {epoch:>5}/{epochs}  {told}", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/churn.csv"))
    parser.add_argument("--epochs", type=int, help="instead of params.json's")
    arguments = parser.parse_args()
    params = json.loads(Path("params.json").read_text(encoding="utf-8"))
    if arguments.epochs:
        params["epochs"] = arguments.epochs
    began = time.monotonic()
    print(f"run {os.environ.get('DOMINO_RUN_NUMBER', '-')} trains with {params}", flush=True)
    customers = read_customers(arguments.data)
    customers = Customers(standardise(customers.rows), customers.churned)
    training, test = split(customers, params["test_share"], params["seed"])
    print(
        f"{len(customers.rows)} customers, {sum(customers.churned)} left;"
        f" {len(training.rows)} to learn from, {len(test.rows)} to test with",
        flush=True,
    )
    write(Path("scratch") / "notes.txt", "ignored by .dominoignore: never copied back\n")
    model = train(params, training, test)
    forecasts = [model.forecast(row) for row in test.rows]
    roc = roc_curve(forecasts, test.churned)
    drawing = chart.draw(
        roc=roc, calibration=calibration_of(forecasts, test.churned), auc=area_below(roc)
    )
    write(RESULTS / "chart.svg", drawing)
    metrics = evaluate(model, test, params["threshold"])
    write(Path("dominostats.json"), json.dumps({name.upper(): v for name, v in metrics.items()}))
    print(f"done in {time.monotonic() - began:.1f} s: AUC {metrics['auc']:.3f}", flush=True)


if __name__ == "__main__":
    main()

"""How long a person waits for `executorctl` itself: a whole process, from start to exit."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.table import Row
from tests.fakes.daemon import FakeDaemon
from tests.fakes.executorctl import COMMAND, environment

AIM_MS = 150.0


def run(quick: bool) -> list[Row]:
    """`executorctl --help` and `ps` beside a Python that does nothing, taken in turns."""
    rounds = 7 if quick else 25
    with tempfile.TemporaryDirectory() as folder, FakeDaemon(Path(folder, "s")) as daemon:
        daemon.add()
        variables = environment(daemon.path)
        bare: list[float] = []
        help_text: list[float] = []
        listing: list[float] = []
        for _ in range(rounds):
            bare.append(_milliseconds([sys.executable, "-c", "pass"], variables))
            help_text.append(_milliseconds([*COMMAND, "--help"], variables))
            listing.append(_milliseconds([*COMMAND, "ps"], variables))
    return [_row("executorctl --help", help_text, bare), _row("executorctl ps", listing, bare)]


def _row(name: str, taken: Sequence[float], bare: Sequence[float]) -> Row:
    figure, peer = statistics.median(taken), statistics.median(bare)
    return Row(
        name=name,
        figure=figure,
        unit="ms",
        peer="python -c pass",
        peer_figure=peer,
        ratio=figure / peer,
        aim=f"under {AIM_MS:.0f} ms",
        met=figure < AIM_MS,
    )


def _milliseconds(command: Sequence[str], variables: dict[str, str]) -> float:
    began = time.perf_counter()
    # without a time-out: waiting with one polls, in steps of up to 50 ms
    subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000

"""`make bench`: every figure in one table. `--quick` takes few samples, to see that it works."""

import argparse
import importlib
import platform
import sys
from collections.abc import Sequence

import psutil

from tests.bench.table import Row, as_markdown

BENCHMARKS = (
    "noop_run",
    "preparing",
    "near",
    "curve",
    "accepts",
    "idle",
    "cli_start",
    "finishing",
    "ahead",
    "cold",
    "push",
    "evicting",
)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("only", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    chosen = parser.parse_args(words)
    rows: list[Row] = []
    for name in chosen.only or BENCHMARKS:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"tests.bench.{name}").run(quick=chosen.quick)
    print(f"Machine: {machine()}. Medians.\n")
    print(as_markdown(rows))
    return 0


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{psutil.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A data-science project's four runs on a real engine, typed as a person would type them.

Run by `make demo`. Every claim on the screen is checked; one that does not hold ends the demo with
exit 1 and a sentence.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.demo.comparison import cost_of, print_comparison
from tests.demo.household import Household, UnexpectedError

PROJECT = Path(__file__).parent / "project"
RUN = "executorctl run --project alice/churn --files churn"
RESULTS = {"results/chart.svg", "results/metrics.json", "results/model.json", "dominostats.json"}
PATIENCE_SECONDS = 30.0


def main() -> int:
    began = time.monotonic()
    house = Household()
    try:
        play(house)
    except UnexpectedError as error:
        print(f"\nThe demo failed: {error}.", file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"\nThe demo failed: {error}.\n{house.log_tail()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        house.sweep()
    print(f"\nThat was the demo: {time.monotonic() - began:.0f} s, and nothing is left of it.")
    return 0


def play(house: Household) -> None:
    shutil.copytree(PROJECT, house.root / "churn", ignore=shutil.ignore_patterns("__pycache__"))
    say("A daemon starts on a node of its own.", f"Its files are below {house.root}.")
    house.start()
    house.type("executorctl node")
    runs = [first(house), second(house), third(house), fourth(house)]
    say("Four runs, four ends", "The node's view of them, and what each stage cost.")
    house.type("executorctl ps --all")
    house.type("executorctl cache")
    print()
    print_comparison(runs)
    leave(house)


def first(house: Household) -> dict[str, Any]:
    say(
        "1. The first run",
        "The project is pushed, its files are fetched into the node's cache, the code runs.",
    )
    house.type("ls churn churn/data && head -3 churn/data/churn.csv")
    house.type(f"{RUN} --id churn-1 --number 1 -- python train.py")
    house.type("executorctl show churn-1")
    house.type("executorctl files churn-1")
    run = ended(house, "churn-1", state="Succeeded", reason="completed")
    changed = {change["path"] for change in house.ask("files", "churn-1")["changes"]}
    expect(changed == RESULTS, f"churn-1 changed {sorted(changed)}, not {sorted(RESULTS)}")
    expect(cost_of(run, "prepare").get("files_fetched", 0) > 0, "the first run fetched no files")
    diagnostics = run["result"]["diagnostics"] or {}
    expect(diagnostics.get("AUC", 0) > 0.8, f"dominostats.json was not reported: {diagnostics}")
    expect((run["usage"] or {}).get("cpu_seconds", 0) > 0.5, "no CPU time was measured")
    return run


def second(house: Household) -> dict[str, Any]:
    say(
        "2. One file changed",
        "Only that file is sent and fetched; the rest of the project comes from the cache.",
    )
    house.type('sed -i \'s/"learning_rate": 0.15/"learning_rate": 0.6/\' churn/params.json')
    house.type(f"{RUN} --id churn-2 --number 2 -- python train.py")
    run = ended(house, "churn-2", state="Succeeded", reason="completed")
    old, new = base(house, "churn-1"), base(house, "churn-2")
    house.type(f"executorctl diff {old} {new}")
    prepared = cost_of(run, "prepare")
    expect(prepared.get("files_fetched") == 1, f"one file should have been fetched: {prepared}")
    expect(prepared.get("files_from_cache", 0) > 0, f"nothing came from the cache: {prepared}")
    return run


def third(house: Household) -> dict[str, Any]:
    say(
        "3. Code that fails",
        "The exit code is passed on, and the end says whose side it is and what to do.",
    )
    command = "python train.py --data data/churn-2031.csv"
    house.type(f"{RUN} --id churn-3 --number 3 -- {command}", exits_with=3)
    run = ended(house, "churn-3", state="Failed", reason="exit_code")
    expect(run["exit_code"] == 3, f"churn-3 ended with exit code {run['exit_code']}, not 3")
    expect(run["explanation"]["side"] == "user", "a failing command is the user's side")
    return run


def fourth(house: Household) -> dict[str, Any]:
    say(
        "4. A run that is stopped",
        "It would train for hours; what it has by now is enough, and is kept.",
    )
    house.type(f"{RUN} --id churn-4 --number 4 --detach -- python train.py --epochs 1000000")
    wait_for_output(house, "churn-4", b"epoch   120/")
    house.type("executorctl stats")
    house.type("executorctl stop churn-4 --reason 'good enough'")
    house.type("executorctl wait churn-4", exits_with=1)
    run = ended(house, "churn-4", state="Stopped", reason="stopped_by_request")
    revision = run["result"]["revision"]
    expect(revision != "", "the stopped run kept no files")
    house.type(f"executorctl pull {revision} partial")
    house.type("cat partial/results/metrics.json")
    metrics = json.loads((house.root / "partial/results/metrics.json").read_text())
    expect(metrics["epoch"] >= 120, f"the partial results are of epoch {metrics['epoch']}")
    expect(not (house.root / "partial/scratch").exists(), ".dominoignore was not honoured")
    return run


def leave(house: Household) -> None:
    status = house.leave()
    expect(status == 0, f"the daemon ended with {status} after SIGTERM:\n{house.log_tail()}")
    left = house.leftovers()
    expect(not left, f"volumes were left behind: {', '.join(left)}")


# -- Checks ----------------------------------------------------------------------------------------


def expect(holds: object, otherwise: str) -> None:
    if not holds:
        raise UnexpectedError(otherwise)


def ended(house: Household, run_id: str, *, state: str, reason: str) -> dict[str, Any]:
    run: dict[str, Any] = house.ask("show", run_id)
    found = (run["state"], run["reason"])
    expect(
        found == (state, reason),
        f"{run_id} ended as {found[0]} ({found[1]}), not as {state} ({reason}):"
        f" {run['explanation']}\n{house.log_tail()}",
    )
    for stage in ("prepare", "image", "run", "finish"):
        expect(cost_of(run, stage).get("seconds"), f"{run_id} does not tell what {stage} cost")
    return run


def base(house: Household, run_id: str) -> str:
    """The digest of the revision that the run started with."""
    return str(house.ask("show", run_id)["assignment"]["files"]["revision"])


def wait_for_output(house: Household, run_id: str, wanted: bytes) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while wanted not in house.output_of(run_id):
        expect(
            time.monotonic() < deadline,
            f"{run_id} did not print {wanted.decode()!r} within {PATIENCE_SECONDS:g} s",
        )
        time.sleep(0.25)


def say(title: str, text: str) -> None:
    strong, plain = ("\033[1;36m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{strong}── {title} {'─' * max(0, 72 - len(title))}{plain}\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

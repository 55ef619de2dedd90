"""The demo's data-science project by itself, without executord."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1] / "demo" / "project"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PROJECT, tmp_path / "churn", ignore=ignored))


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_data_set_is_what_its_program_makes(project: Path) -> None:
    data = project / "data" / "churn.csv"
    kept = data.read_bytes()
    data.unlink()
    assert run(project, "make_data.py").returncode == 0
    assert data.read_bytes() == kept
    assert len(kept) < 300_000


def test_training_learns_something_and_leaves_whole_results(project: Path) -> None:
    done = run(project, "train.py", "--epochs", "40")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((project / "results" / "metrics.json").read_text())
    assert metrics["epoch"] == 40
    assert metrics["auc"] > 0.8
    assert json.loads((project / "dominostats.json").read_text())["AUC"] == metrics["auc"]
    assert ET.parse(project / "results" / "chart.svg").getroot().tag.endswith("svg")
    assert not list(project.rglob("*.tmp"))


def test_a_missing_data_set_is_said_and_ends_with_3(project: Path) -> None:
    done = run(project, "train.py", "--data", "data/none.csv")
    assert done.returncode == 3
    assert "no data set at data/none.csv" in done.stderr

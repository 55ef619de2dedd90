"""ARCHITECTURE.md is true: its diagram is the table's, its folders and files are there."""

import re
from pathlib import Path

from executord.core.diagram import mermaid
from executord.core.states import MAY_GO_TO, TERMINAL, State

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "executord" / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_state_diagram_is_the_one_that_the_table_draws() -> None:
    drawn = re.search(r"```mermaid\n(.*?)\n```", TEXT, re.DOTALL)
    assert drawn is not None
    assert drawn.group(1) == mermaid()


def test_every_path_that_it_names_exists() -> None:
    named = set(re.findall(r"`((?:executord|tests|systemd)/[\w./-]+)`", TEXT))
    assert named
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == []


def test_every_folder_of_the_package_is_named() -> None:
    folders = {path.parent.name for path in (ROOT / "executord").glob("*/__init__.py")}
    missing = [name for name in folders if f"{name}/" not in TEXT]
    assert missing == []


def test_terminal_states_lead_nowhere_and_all_others_lead_on() -> None:
    assert {state for state, targets in MAY_GO_TO.items() if not targets} == set(TERMINAL)
    assert set(MAY_GO_TO) == set(State)

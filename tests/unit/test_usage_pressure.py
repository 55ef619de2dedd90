"""Whether the host is under pressure, from the kernel's own figures."""

from pathlib import Path

import pytest

from executord.usage.pressure import Pressure

CALM = (
    "some avg10=0.00 avg60=90.00 avg300=90.00 total=1\nfull avg10=0.00 avg60=0 avg300=0 total=0\n"
)


def figures(directory: Path, **some: str) -> Pressure:
    for what in ("memory", "io"):
        (directory / what).write_text(CALM.replace("0.00", some.get(what, "0.00"), 1))
    return Pressure(directory)


def test_a_calm_host_has_nothing_against_more_work(tmp_path: Path) -> None:
    assert figures(tmp_path).why_not() == ""


@pytest.mark.parametrize(("what", "share"), [("memory", "10.01"), ("io", "60.01")])
def test_tasks_that_wait_stand_against_it(tmp_path: Path, what: str, share: str) -> None:
    assert share in figures(tmp_path, **{what: share}).why_not()


@pytest.mark.parametrize(("what", "share"), [("memory", "10.00"), ("io", "60.00")])
def test_some_waiting_is_ordinary(tmp_path: Path, what: str, share: str) -> None:
    assert figures(tmp_path, **{what: share}).why_not() == ""


@pytest.mark.parametrize("text", ["", "some\n", "some avg10=lots\n", "full avg10=99.00\n"])
def test_figures_that_make_no_sense_count_as_none(tmp_path: Path, text: str) -> None:
    for what in ("memory", "io"):
        (tmp_path / what).write_text(text)
    assert Pressure(tmp_path).why_not() == ""


def test_a_kernel_without_these_figures_is_asked_for_its_memory(tmp_path: Path) -> None:
    assert Pressure(tmp_path / "nothing").why_not() == ""

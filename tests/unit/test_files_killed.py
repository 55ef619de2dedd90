"""The accidents that the fault suites rest on happen exactly where they are told to."""

import os
from pathlib import Path

import pytest

from executord.core.reasons import Reason
from tests.fakes.files import new_store, push, write_files
from tests.fakes.files_worker import KILLED, Worker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="as the suites")


def test_the_worker_dies_right_before_the_effect_it_is_told(tmp_path: Path) -> None:
    pushed = push(new_store(tmp_path / "store"), write_files(tmp_path / "p", {"a": "a"}))
    with Worker() as worker:
        whole = worker.do("prepare", tmp_path / "s", tmp_path / "store", revision=pushed.revision)
        assert (whole.status, whole.way) == (0, "farm")
        assert whole.effects > 15
        first = worker.do(
            "prepare", tmp_path / "s1", tmp_path / "store", revision=pushed.revision, at=1
        )
        assert first.status == KILLED
        assert not list((tmp_path / "s1/blobs-v1").rglob("?" * 64))
        last = worker.do(
            "prepare",
            tmp_path / "s2",
            tmp_path / "store",
            revision=pushed.revision,
            at=whole.effects - 5,
        )
        assert last.status == KILLED
        assert list((tmp_path / "s2/snapshots-v1").iterdir())


def test_the_worker_is_refused_the_effect_it_is_told_and_goes_on_afterwards(
    tmp_path: Path,
) -> None:
    pushed = push(new_store(tmp_path / "store"), write_files(tmp_path / "p", {"a": "a"}))
    with Worker() as worker:
        refused = worker.do(
            "prepare",
            tmp_path / "s",
            tmp_path / "store",
            revision=pushed.revision,
            at=5,
            kill=False,
            again=True,
        )
    assert refused.reason == Reason.DISK_FULL
    assert refused.tmp == []
    assert refused.way == "farm"

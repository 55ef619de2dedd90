"""Push, pull and diff as processes of their own, on a real file store."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.daemon import FakeDaemon
from tests.fakes.executorctl import ctl


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    store = tmp_path / "store"
    store.mkdir()
    with FakeDaemon(tmp_path / "s") as fake:
        fake.fixed["GET /v1/node"] = (200, {"name": "n", "store_url": f"file://{store}"})
        yield fake


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "churn"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "train.py").write_text("print('hi')\n")
    (folder / "data.csv").write_text("a,b\n1,2\n")
    return folder


def pushed(daemon: FakeDaemon, folder: Path, home: Path) -> str:
    done = ctl("push", str(folder), "-p", "alice/churn", socket=daemon.path, HOME=str(home))
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def test_what_was_pushed_is_pulled_and_compared(
    daemon: FakeDaemon, project: Path, tmp_path: Path
) -> None:
    first = pushed(daemon, project, tmp_path)
    (project / "data.csv").write_text("a,b\n3,4\n5,6\n")
    (project / "new.txt").write_text("new")
    (project / "src" / "train.py").unlink()
    second = pushed(daemon, project, tmp_path)
    assert first.startswith("sha256:")
    assert first != second

    differs = ctl("diff", first, second, socket=daemon.path).stdout.decode()
    assert [line.split()[0] + line.split()[-1] for line in differs.splitlines()] == [
        "Mdata.csv",
        "Anew.txt",
        "Dsrc/train.py",
    ]
    done = ctl("pull", second, str(tmp_path / "out"), socket=daemon.path)
    assert done.returncode == 0
    assert (tmp_path / "out" / "data.csv").read_text() == "a,b\n3,4\n5,6\n"
    assert not (tmp_path / "out" / "src" / "train.py").exists()


def test_a_second_push_of_the_same_files_sends_nothing(
    daemon: FakeDaemon, project: Path, tmp_path: Path
) -> None:
    first = pushed(daemon, project, tmp_path)
    done = ctl("push", str(project), "-p", "alice/churn", socket=daemon.path, HOME=str(tmp_path))
    assert done.stdout.decode().strip() == first
    assert b"Nothing new in alice/churn" in done.stderr


def test_a_run_pushes_its_directory_and_starts_with_that_revision(
    daemon: FakeDaemon, project: Path, tmp_path: Path
) -> None:
    done = ctl(
        "run", "--files", str(project), "--id", "r-1", "--started-by", "al ice", "--", "x",
        socket=daemon.path, HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0
    asked = daemon.runs["r-1"].asked
    assert asked["project"] == "al-ice/churn"
    assert asked["files"]["revision"] == pushed_head(tmp_path, "al-ice/churn")
    assert b"Pushed al-ice/churn (2 files" in done.stderr


def pushed_head(folder: Path, name: str) -> str:
    return (folder / "store" / "projects" / name / "head").read_text()


def test_a_run_takes_a_revision_without_pushing(daemon: FakeDaemon) -> None:
    revision = "sha256:" + "0" * 64
    ctl("run", "--files", revision, "--id", "r-1", "--", "x", socket=daemon.path)
    assert daemon.runs["r-1"].asked["files"] == {"revision": revision}


def test_files_that_are_neither_directory_nor_revision_are_wrong_usage(daemon: FakeDaemon) -> None:
    done = ctl("run", "--files", "/nowhere/at/all", "--", "x", socket=daemon.path)
    assert done.returncode == 2
    assert b"neither a directory nor a revision" in done.stderr
    assert not daemon.runs


def test_a_revision_that_is_not_there_is_named(daemon: FakeDaemon, tmp_path: Path) -> None:
    done = ctl("pull", "sha256:" + "0" * 64, str(tmp_path / "out"), socket=daemon.path)
    assert done.returncode == 1
    assert b"sha256:000000" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_empty_is_not_pulled_into(
    daemon: FakeDaemon, project: Path, tmp_path: Path
) -> None:
    revision = pushed(daemon, project, tmp_path)
    done = ctl("pull", revision, str(project), socket=daemon.path)
    assert done.returncode == 1
    assert b"not empty" in done.stderr


def test_a_store_that_is_not_there_is_named(project: Path, tmp_path: Path) -> None:
    done = ctl(
        "push", str(project), "-p", "a/b", "--store", f"file://{tmp_path}/none", HOME=str(tmp_path)
    )
    assert done.returncode == 1
    assert f"{tmp_path}/none" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_node_without_a_store_says_how_to_name_one(daemon: FakeDaemon, project: Path) -> None:
    daemon.fixed["GET /v1/node"] = (200, {"name": "n", "store_url": ""})
    done = ctl("push", str(project), socket=daemon.path)
    assert done.returncode == 2
    assert b"EXECUTORD_STORE" in done.stderr


def test_a_bad_project_name_is_wrong_usage(daemon: FakeDaemon, project: Path) -> None:
    done = ctl("push", str(project), "-p", "a/../b", socket=daemon.path)
    assert done.returncode == 2


def test_a_push_is_told_to_machines_with_all_its_figures(
    daemon: FakeDaemon, project: Path, tmp_path: Path
) -> None:
    done = ctl("push", "--json", str(project), "-p", "a/b", socket=daemon.path, HOME=str(tmp_path))
    told = json.loads(done.stdout)
    assert told["files"] == told["files_sent"] == 2
    assert told["head"] == "moved"

from collections.abc import Callable
from pathlib import Path

import pytest

from executord.cli import assignment as made
from executord.cli.errors import UsageProblemError


def test_what_is_not_given_is_left_to_the_nodes_defaults() -> None:
    body = made.assignment(run_id="r-1", command=["true"])
    assert body == {"id": "r-1", "command": ["true"]}


def test_every_option_lands_where_the_contract_has_it(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("RUN true\n")
    (tmp_path / "vars").write_text("# comment\n\nA=1\nB=two words \n")
    (tmp_path / "password").write_text("geheim\n")
    body = made.assignment(
        run_id="r-1",
        command=["python", "train.py"],
        project="alice/churn",
        number=42,
        started_by="alice",
        tier="small",
        revision="sha256:" + "0" * 64,
        image="python:3.12",
        dockerfile=str(tmp_path / "Dockerfile"),
        build_args=["V=1=2"],
        pull="never",
        env=["A=3", "EMPTY="],
        env_files=[str(tmp_path / "vars")],
        secret=["TOKEN=t"],
        secret_files=[f"PASSWORD={tmp_path / 'password'}"],
        mount=["/data:/in", "/out:/out:rw", "sha256:" + "1" * 64 + ":/sets"],
        time_limit=60.0,
        keep="succeeded, failed",
        labels=["team=growth"],
    )
    assert body == {
        "id": "r-1",
        "project": "alice/churn",
        "number": 42,
        "started_by": "alice",
        "tier": "small",
        "files": {"revision": "sha256:" + "0" * 64},
        "environment": {
            "image": "python:3.12",
            "dockerfile": "RUN true\n",
            "build_args": {"V": "1=2"},
            "pull": "never",
        },
        "command": ["python", "train.py"],
        "env": {"A": "3", "B": "two words", "EMPTY": ""},
        "secrets": {"TOKEN": "t", "PASSWORD": "geheim"},
        "mounts": [
            {"source": "/data", "target": "/in", "read_only": True},
            {"source": "/out", "target": "/out", "read_only": False},
            {"revision": "sha256:" + "1" * 64, "target": "/sets"},
        ],
        "limits": {"run_seconds": 60.0},
        "results": {"keep_on": ["succeeded", "failed"]},
        "labels": {"team": "growth"},
    }


def test_keeping_nothing_is_said_and_not_left_out() -> None:
    body = made.assignment(run_id="r-1", command=["true"], keep="none")
    assert body["results"] == {"keep_on": []}


def test_a_variable_without_a_value_takes_the_one_it_has_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FROM_HERE", "yes")
    assert made.environment(["FROM_HERE"], []) == {"FROM_HERE": "yes"}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: made.pairs("--label", ["nothing"]), "--label takes KEY=VALUE, not 'nothing'"),
        (lambda: made.pairs("--label", ["=x"]), "--label"),
        (lambda: made.environment(["NOT_SET_ANYWHERE"], []), "NOT_SET_ANYWHERE"),
        (lambda: made.environment([], ["/nowhere/vars"]), "/nowhere/vars cannot be read"),
        (lambda: made.mounts(["/data"]), "SOURCE:TARGET"),
        (lambda: made.mounts(["/a:/b:rx"]), "SOURCE:TARGET"),
        (lambda: made.mounts([":/b"]), "SOURCE:TARGET"),
        (lambda: made.mounts(["sha256:" + "0" * 64 + ":/b:rw"]), "a revision is read-only"),
        (lambda: made.mounts(["sha256:" + "0" * 64]), "REVISION:TARGET"),
        (lambda: made.mounts(["sha256:6ac133c5:/b"]), "sha256: and 64 hex digits"),
        (lambda: made.keep_on("succeeded,sometimes"), "'sometimes'"),
    ],
)
def test_a_malformed_option_is_named(call: Callable[[], object], named: str) -> None:
    with pytest.raises(UsageProblemError) as raised:
        call()
    assert named in raised.value.message


def test_a_dockerfile_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageProblemError, match="not UTF-8"):
        made.assignment(run_id="r", command=["x"], dockerfile=str(tmp_path / "Dockerfile"))


def test_an_assignment_file_must_hold_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UsageProblemError, match="no JSON object"):
        made.read_assignment(str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UsageProblemError, match="is not JSON"):
        made.read_assignment(str(tmp_path / "a.json"))


def test_new_run_ids_differ() -> None:
    assert len({made.new_run_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("sha256:" + "a" * 64, True), ("sha256:" + "a" * 63, False), ("project", False)],
)
def test_only_a_whole_digest_is_a_revision(text: str, is_one: bool) -> None:
    assert made.is_revision(text) is is_one

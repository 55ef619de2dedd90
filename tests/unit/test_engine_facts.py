"""Reading what the engine says: recorded answers of Docker 20.10, and things that are not."""

from typing import Any

import pytest

from executord.engine.facts import container_facts, engine_facts, image_facts, parse_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0001-01-01T00:00:00Z", None),
        ("", None),
        ("1970-01-01T00:00:01Z", 1.0),
        ("2024-01-02T03:04:05Z", 1704164645.0),
        ("2024-01-02T03:04:05.123456789Z", 1704164645.123456789),
        ("2024-01-02T03:04:05.5+02:00", 1704157445.5),
    ],
)
def test_times_are_read_to_the_nanosecond(text: str, expected: float | None) -> None:
    assert parse_time(text) == (None if expected is None else pytest.approx(expected, abs=1e-6))


@pytest.mark.parametrize("text", ["yesterday", "2024-01-02", "2024-01-02T03:04:05", "2024-13-40"])
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def _container(**state: Any) -> dict[str, Any]:
    return {
        "Id": "c" * 64,
        "Name": "/executord-1",
        "LogPath": "/log",
        "Config": {"Labels": {"a": "b"}},
        "State": {
            "Status": "exited",
            "Pid": 0,
            "ExitCode": 3,
            "OOMKilled": False,
            "Error": "",
            "StartedAt": "2024-01-02T03:04:05Z",
            "FinishedAt": "2024-01-02T03:04:06Z",
            **state,
        },
    }


def test_an_ended_container_has_its_code_and_times() -> None:
    facts = container_facts(_container())
    assert (facts.name, facts.state, facts.exit_code) == ("executord-1", "exited", 3)
    assert facts.finished_at is not None
    assert facts.started_at is not None
    assert facts.finished_at - facts.started_at == 1.0
    assert facts.labels == {"a": "b"}


@pytest.mark.parametrize("status", ["created", "running", "paused", "restarting", "removing"])
def test_what_has_not_ended_has_no_exit_code(status: str) -> None:
    assert container_facts(_container(Status=status, ExitCode=0)).exit_code is None


def test_a_failed_start_leaves_a_created_container_with_code_and_error() -> None:
    never = "0001-01-01T00:00:00Z"
    facts = container_facts(
        _container(Status="created", ExitCode=127, Error="no", StartedAt=never, FinishedAt=never)
    )
    assert (facts.exit_code, facts.error, facts.started_at) == (127, "no", None)


@pytest.mark.parametrize("change", [{"Status": "dancing"}, {"StartedAt": "then"}])
def test_a_container_that_makes_no_sense_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        container_facts(_container(**change))


def test_an_image_without_names_labels_or_layers_is_read() -> None:
    facts = image_facts({"Id": "sha256:1", "RepoTags": None, "Config": None})
    assert (facts.tags, facts.digests, facts.layers, facts.labels) == ((), (), (), {})


def test_an_image_keeps_only_real_names() -> None:
    facts = image_facts(
        {
            "Id": "sha256:1",
            "RepoTags": ["a:1", "<none>:<none>"],
            "RepoDigests": ["a@sha256:2", "<none>@<none>"],
            "Size": 5,
            "Created": "2024-01-02T03:04:05.1Z",
            "Architecture": "amd64",
            "RootFS": {"Layers": ["sha256:3"]},
            "Config": {"Labels": {"x": "y"}},
        }
    )
    assert facts.tags == ("a:1",)
    assert facts.digests == ("a@sha256:2",)
    assert facts.layers == ("sha256:3",)
    assert (facts.size_bytes, facts.labels) == (5, {"x": "y"})


def test_an_older_engine_without_a_cgroup_version_has_the_first() -> None:
    facts = engine_facts(
        {"Version": "19.03", "ApiVersion": "1.40"}, {"Driver": "overlay2", "CgroupDriver": "x"}
    )
    assert facts.cgroup_version == 1
    assert not facts.live_restore

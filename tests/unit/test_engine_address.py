"""Which addresses of an engine, and which names, are let through."""

import pytest

from executord.core.reasons import FaultError, Reason
from executord.engine.address import (
    Address,
    checked_name,
    checked_reference,
    parse_address,
    split_tag,
)


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("", {}, Address("http://localhost", "/var/run/docker.sock")),
        ("", {"DOCKER_HOST": "unix:///x/y.sock"}, Address("http://localhost", "/x/y.sock")),
        ("unix:///a", {"DOCKER_HOST": "unix:///b"}, Address("http://localhost", "/a")),
        ("tcp://127.0.0.1:2375", {}, Address("http://127.0.0.1:2375")),
        ("http://engine:2375/", {}, Address("http://engine:2375")),
        ("tcp://[::1]:2375", {}, Address("http://[::1]:2375")),
    ],
)
def test_addresses_that_are_understood(
    url: str, environment: dict[str, str], expected: Address
) -> None:
    assert parse_address(url, environment) == expected


@pytest.mark.parametrize(
    "url",
    [
        "ssh://host",
        "npipe:////./pipe/docker",
        "https://host:2376",
        "/var/run/docker.sock",
        "unix://relative.sock",
        "unix://",
        "tcp://host",
        "tcp://user@host:1",
        "tcp://host:1/path",
        "unix:///a\0b",
    ],
)
def test_other_addresses_are_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match="engine url") as caught:
        parse_address(url, {})
    assert url in str(caught.value)


@pytest.mark.parametrize(
    "reference",
    [
        "python",
        "python:3.12-slim",
        "library/python:3.12",
        "127.0.0.1:5000/team/image:1",
        "registry.example.org/a/b/c@sha256:" + "0" * 64,
        "python:3@sha256:" + "0" * 64,
        "sha256:" + "0" * 64,
        "executord/env:" + "0" * 64,
    ],
)
def test_names_of_images_pass(reference: str) -> None:
    assert checked_reference(reference) == reference


@pytest.mark.parametrize(
    "reference",
    ["", ".", "..", "../x", "a/../b", "a/..", "a//b", "a b", "a?b", "a#b", "a%2e", "-a", "a\n"],
)
def test_what_is_not_an_images_name_is_the_users_matter(reference: str) -> None:
    with pytest.raises(FaultError) as caught:
        checked_reference(reference)
    assert caught.value.fault.reason is Reason.IMAGE_NOT_FOUND


def test_an_endless_name_is_refused_in_few_words() -> None:
    with pytest.raises(FaultError) as caught:
        checked_reference("a" * 100_000)
    assert len(caught.value.fault.detail) < 200


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "-a", "a?x", "a" * 300])
def test_names_of_containers_and_volumes_are_checked(name: str) -> None:
    with pytest.raises(FaultError):
        checked_name(name)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("python", ("python", "latest")),
        ("python:3.12", ("python", "3.12")),
        ("127.0.0.1:5000/image", ("127.0.0.1:5000/image", "latest")),
        ("127.0.0.1:5000/image:1", ("127.0.0.1:5000/image", "1")),
        ("a/b@sha256:00", ("a/b", "sha256:00")),
        ("a/b:1@sha256:00", ("a/b", "sha256:00")),
    ],
)
def test_a_reference_falls_into_repository_and_tag(reference: str, parts: tuple[str, str]) -> None:
    assert split_tag(reference) == parts

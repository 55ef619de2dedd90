"""Messages of real engines and registries, and whose side they put a run's end on."""

import aiohttp
import pytest

from executord.core.reasons import Reason, Side
from executord.engine import errors

_RUNC = (
    "failed to create shim task: OCI runtime create failed: runc create failed:"
    " unable to start container process: "
)
_NO_SUCH_REPOSITORY = (
    "pull access denied for nosuch, repository does not exist or may require"
    " 'docker login': denied: requested access to the resource is denied"
)
_NO_NAME_SERVER = (
    'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on'
    " 10.0.0.1:53: no such host"
)


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (400, _RUNC + 'exec: "x": executable file not found in $PATH: unknown', "not_found"),
        (400, _RUNC + 'exec: "/x": stat /x: no such file or directory: unknown', "not_found"),
        (400, _RUNC + 'exec: "/etc/passwd": permission denied: unknown', "not_executable"),
        (400, _RUNC + 'exec: "/x": exec format error: unknown', "not_executable"),
        (400, _RUNC + 'error mounting "/a" to rootfs at "/b": no such file or directory', "engine"),
        (500, "error while mounting volume 'v': failed to mount local volume: mount", "workspace"),
        (500, "unable to find user nobody: no matching entries in passwd file", "engine"),
        (500, "write /x: no space left on device", "disk"),
        (404, "No such container: x", "lost"),
        (500, "connection error: desc = transport: dial unix containerd.sock", "unavailable"),
    ],
)
def test_why_a_container_does_not_start(status: int, message: str, reason: str) -> None:
    expected = {
        "not_found": Reason.COMMAND_NOT_FOUND,
        "not_executable": Reason.COMMAND_NOT_EXECUTABLE,
        "engine": Reason.ENGINE_REFUSED,
        "workspace": Reason.WORKSPACE_FAILED,
        "disk": Reason.DISK_FULL,
        "lost": Reason.CONTAINER_LOST,
        "unavailable": Reason.ENGINE_UNAVAILABLE,
    }
    fault = errors.of_start("start container `x`", status, message).fault
    assert fault.reason is expected[reason]
    assert "start container `x`" in fault.detail


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("manifest for python:none not found: manifest unknown", Reason.IMAGE_NOT_FOUND),
        ("manifest unknown: manifest unknown", Reason.IMAGE_NOT_FOUND),
        ("name unknown: repository name not known to registry", Reason.IMAGE_NOT_FOUND),
        ("invalid reference format: repository name must be lowercase", Reason.IMAGE_NOT_FOUND),
        (_NO_SUCH_REPOSITORY, Reason.IMAGE_DENIED),
        ("unauthorized: authentication required", Reason.IMAGE_DENIED),
        ('Get "http://r/v2/": no basic auth credentials', Reason.IMAGE_DENIED),
        ("denied", Reason.IMAGE_DENIED),
        (_NO_NAME_SERVER, Reason.REGISTRY_UNAVAILABLE),
        (
            'Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused',
            Reason.REGISTRY_UNAVAILABLE,
        ),
        (
            'Get "https://not-found.denied/v2/": dial tcp: lookup not-found.denied: no such host',
            Reason.REGISTRY_UNAVAILABLE,
        ),
        ('Get "https://r/v2/": net/http: TLS handshake timeout', Reason.REGISTRY_UNAVAILABLE),
        ("received unexpected HTTP status: 503 Service Unavailable", Reason.REGISTRY_UNAVAILABLE),
        ("toomanyrequests: You have reached your pull rate limit", Reason.REGISTRY_UNAVAILABLE),
        ("unexpected EOF", Reason.REGISTRY_UNAVAILABLE),
        ('Get "https://r/v2/": x509: certificate has expired', Reason.REGISTRY_UNAVAILABLE),
        ("no matching manifest for linux/amd64 in the manifest list", Reason.IMAGE_UNUSABLE),
        ("write /var/lib/docker/tmp/x: no space left on device", Reason.DISK_FULL),
        ("something that nobody has ever seen", Reason.ENGINE_REFUSED),
    ],
)
def test_why_a_pull_fails(message: str, reason: Reason) -> None:
    fault = errors.of_registry("pull image `x`", 500, message).fault
    assert fault.reason is reason
    assert fault.evidence["engine_message"] == message


def test_a_missing_image_is_the_users_side_and_a_dead_registry_is_not() -> None:
    assert errors.of_registry("pull", 404, "tag gone").fault.side is Side.USER
    dead = errors.of_registry("pull", 500, "dial tcp: refused").fault
    assert dead.side is Side.PLATFORM


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        aiohttp.ClientPayloadError("cut"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientConnectionError("refused"),
        aiohttp.ServerTimeoutError(),
        ConnectionResetError(104, "reset"),
        FileNotFoundError(2, "no socket"),
        ValueError("nonsense"),
        KeyError("Id"),
    ],
)
def test_every_way_in_which_a_reply_fails_means_that_nobody_knows(error: Exception) -> None:
    fault = errors.of_exception("create container `x`", error).fault
    assert fault.reason is Reason.ENGINE_UNAVAILABLE
    assert "create container `x`" in fault.detail


def test_a_huge_message_is_cut() -> None:
    fault = errors.refused("do it", "x" * 1_000_000).fault
    assert len(fault.detail) < 3000


def test_what_the_init_says_is_told_from_what_a_program_says() -> None:
    said = "[FATAL tini (7)] exec nope failed: No such file or directory\n"
    assert errors.init_failure(said) == "exec nope failed: No such file or directory"
    assert errors.init_failure("sh: nope: not found\n") == ""

"""What the daemon takes from its environment."""

import pytest

from executord.config.environment import EnvironmentVariableError, log_settings, service_manager


def test_the_log_is_json_for_machines_and_as_asked() -> None:
    assert log_settings({"EXECUTORD_LOG": "json"}).format == "json"
    chosen = log_settings({"EXECUTORD_LOG": "console", "EXECUTORD_LOG_LEVEL": "DEBUG"})
    assert (chosen.format, chosen.level) == ("console", "debug")


def test_a_log_level_that_means_nothing_is_refused() -> None:
    with pytest.raises(EnvironmentVariableError, match="EXECUTORD_LOG_LEVEL is 'loud'"):
        log_settings({"EXECUTORD_LOG_LEVEL": "loud"})


def test_what_a_service_manager_passes_is_taken() -> None:
    environ = {
        "NOTIFY_SOCKET": "@x",
        "LISTEN_FDS": "2",
        "LISTEN_PID": "17",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": "17",
    }
    found = service_manager(environ, pid=17)
    assert (found.notify_socket, found.listen_fds, found.watchdog_seconds) == ("@x", (3, 4), 3.0)


def test_what_was_meant_for_another_process_is_left_alone() -> None:
    environ = {"LISTEN_FDS": "2", "LISTEN_PID": "17", "WATCHDOG_USEC": "3", "WATCHDOG_PID": "17"}
    found = service_manager(environ, pid=18)
    assert (found.notify_socket, found.listen_fds, found.watchdog_seconds) == (None, (), None)

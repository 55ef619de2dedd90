"""The log: one line a fact, for machines and for people, and never a secret in it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from executord import logs
from executord.config import LogSettings


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("aiohttp.access", "asyncio")}
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def configured(form: Any = "json", level: Any = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(LogSettings(format=form, level=level), stream=stream)
    return stream


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_fact_is_one_json_line_with_name_time_level_and_logger() -> None:
    stream = configured()
    structlog.contextvars.bind_contextvars(run_id="r-1")
    structlog.get_logger("executord.files").info("cache.evicted", freed_bytes=7)
    (line,) = lines_of(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "cache.evicted",
        "freed_bytes": 7,
        "level": "info",
        "logger": "executord.files",
        "run_id": "r-1",
    }


def test_the_standard_librarys_loggers_come_out_the_same_way() -> None:
    stream = configured()
    logging.getLogger("aiohttp.server").error("Error handling %s", "request", extra={"peer": 7})
    (line,) = lines_of(stream)
    assert line["event"] == "Error handling request"
    assert (line["level"], line["logger"], line["peer"]) == ("error", "aiohttp.server", 7)


def test_what_is_below_the_level_is_not_written() -> None:
    stream = configured(level="warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("x").info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines_of(stream)] == ["loud"]


def test_requests_are_not_logged_one_by_one() -> None:
    stream = configured(level="info")
    logging.getLogger("aiohttp.access").info("GET /v1/runs")
    assert stream.getvalue() == ""


def test_configuring_again_writes_each_fact_once() -> None:
    first, second = configured(), configured()
    structlog.get_logger().info("once")
    assert first.getvalue() == ""
    assert len(lines_of(second)) == 1


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "fact",
    [
        {"password": "hunter2"},
        {"DB_PASSWD": "hunter2"},
        {"api_key": "hunter2"},
        {"access-key": "hunter2"},
        {"token": ["hunter2"]},
        {"env": {"deep": [{"client_secret": "hunter2"}]}},
        {"headers": ({"Authorization": "hunter2"},)},
        {"url": "https://ann:hunter2@host/path"},
        {"urls": ["s3://hunter2@bucket"]},
    ],
)
def test_a_secret_is_never_written(form: str, fact: dict[str, Any]) -> None:
    stream = configured(form)
    structlog.get_logger().info("fact", **fact)
    logging.getLogger("x").info("fact", extra=fact)
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count(logs.HIDDEN) == 2


names = st.sampled_from(["secret", "my_token", "x", "list", "Password"])
trees = st.recursive(
    st.text("ab", min_size=1).map(lambda leaf: f"leaf-{leaf}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(names, trees, min_size=1))
def test_below_a_secret_name_nothing_is_left_however_deep(fact: dict[str, Any]) -> None:
    def check(hidden: Any, *, secret: bool) -> None:
        if isinstance(hidden, dict):
            for key, value in hidden.items():
                check(value, secret=secret or key in ("secret", "my_token", "Password"))
        elif isinstance(hidden, list):
            for value in hidden:
                check(value, secret=secret)
        else:
            assert hidden == logs.HIDDEN if secret else str(hidden).startswith(("leaf-", "…"))

    check(logs.hide_secrets(None, "info", dict(fact)), secret=False)


def test_an_endlessly_nested_value_is_cut() -> None:
    nested: list[Any] = []
    nested.append(nested)
    stream = configured()
    structlog.get_logger().info("fact", value=nested)
    assert "…" in json.dumps(lines_of(stream), ensure_ascii=False)


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_is_written_without_local_variables(form: str) -> None:
    stream = configured(form)

    def fail(_local: str) -> None:
        raise RuntimeError("broke")

    local = "hunter2"
    try:
        fail(local)
    except RuntimeError:
        structlog.get_logger().exception("run.crashed")
    text = stream.getvalue()
    assert "Traceback" in text
    assert "RuntimeError: broke" in text
    assert "hunter2" not in text


def test_a_value_that_is_no_json_is_written_as_it_shows_itself() -> None:
    stream = configured()
    structlog.get_logger().info("fact", data=b"\xff")
    assert lines_of(stream)[0]["data"] == "b'\\xff'"


def test_people_see_no_terminal_commands_of_others() -> None:
    stream = configured("console")
    structlog.get_logger().info("fact", name="\x1b[2Jgone\r\n")
    logging.getLogger("x").info("a\x1b]0;title\x07b")
    assert "\x1b" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 2

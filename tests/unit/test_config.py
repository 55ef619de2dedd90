"""The configuration: every default known, every mistake told with its key and line."""

import dataclasses
import itertools
import tomllib
from pathlib import Path

import pytest

from executord.config import ConfigError, Host, Settings, UserIds, load, parse, render
from executord.config.keys import SECTIONS, TIER_KEYS
from executord.config.load import MAX_FILE_BYTES
from executord.core.admission import Tier

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
HOST = Host(name="node-7", cpus=6)
GIB = 1 << 30


def settings_of(text: str) -> Settings:
    return parse(text, path=Path("c.toml"), host=HOST)


def problems_of(text: str) -> list[tuple[str, int | None, str]]:
    with pytest.raises(ConfigError) as caught:
        settings_of(text)
    return [(p.key, p.line, p.sentence) for p in caught.value.problems]


def only_problem_of(text: str) -> tuple[str, int | None, str]:
    (problem,) = problems_of(text)
    return problem


# -- Defaults and the example ----------------------------------------------------------------------


def test_a_state_directory_and_a_store_are_a_whole_configuration() -> None:
    settings = settings_of('[node]\nstate_dir = "/srv/x"\n[store]\nurl = "s3://bucket/prefix"\n')
    assert settings.node.state_dir == Path("/srv/x")
    assert settings.store.url == "s3://bucket/prefix"
    assert settings.node.name == "node-7"
    assert settings.tiers == {
        "small": Tier(name="small", cpus=1, memory_bytes=GIB, gpus=0, max_runs=6)
    }
    assert settings.runs.default_tier == "small"
    assert settings.runs.user == UserIds(1000, 1000)


def test_without_a_store_files_are_kept_in_the_state_directory() -> None:
    assert settings_of('node.state_dir = "/srv/x"').store.url == "file:///srv/x/store"


def test_the_example_holds_exactly_the_defaults() -> None:
    assert load(EXAMPLE, host=HOST) == settings_of("")


def test_the_example_lists_every_key_and_no_other() -> None:
    document = tomllib.loads(EXAMPLE.read_text())
    tiers = document.pop("tiers")
    listed = {f"{section}.{key}" for section, keys in document.items() for key in keys}
    known = {f"{section}.{key.name}" for section, keys in SECTIONS.items() for key in keys}
    assert listed == known
    assert list(tiers["small"]) == [key.name for key in TIER_KEYS]


def test_the_example_explains_every_key() -> None:
    """A comment stands above each key, or above its neighbour when they are told together."""
    lines = EXAMPLE.read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if "=" in line and not line.startswith("#"):
            assert above.startswith("#") or line.startswith("high_watermark"), line


def test_settings_cannot_be_changed() -> None:
    settings = settings_of("")
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.node.name = "other"  # type: ignore[misc]


def test_what_check_config_prints_gives_the_same_settings() -> None:
    settings = settings_of(
        """
        [node]
        name = "n-1"
        [api]
        listen = "[::1]:9464"
        socket_mode = "600"
        socket_group = "0"
        [tiers."a.b"]
        cpus = 0.5
        memory = "1500MB"
        max_runs = 3
        [upstream]
        kind = "http"
        url = "https://example.com/events"
        headers_file = "/etc/x"
        [runs]
        allowed_mounts = ["/data", "/sets"]
        [access]
        read = ["group:staff", "user:ann", "uid:7"]
        """
    )
    assert settings_of(render(settings)) == settings


def test_credentials_of_the_store_are_not_shown() -> None:
    settings = settings_of('[store]\nurl = "s3://b"\noptions = {aws_secret_access_key = "hunter2"}')
    assert settings.store.options == {"aws_secret_access_key": "hunter2"}
    assert "hunter2" not in render(settings)
    assert "hunter2" not in repr(settings)


def test_options_of_the_store_may_be_numbers_and_flags() -> None:
    settings = settings_of("store.options = {allow_http = true, retries = 3}")
    assert settings.store.options == {"allow_http": "true", "retries": "3"}


def test_the_first_tier_of_the_file_is_the_default_one() -> None:
    settings = settings_of("[tiers.large]\ncpus = 4\n[tiers.small]\n")
    assert settings.runs.default_tier == "large"
    assert settings.tiers["large"].cpus == 4
    assert settings.tiers["small"].max_runs == 6


# -- Problems --------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once_in_the_files_order() -> None:
    text = """
[node]
name = "a b"
[files]
max_size = 5
lo_watermark = 0.5
[runs]
user = "root"
"""
    found = [(key, line) for key, line, _ in problems_of(text)]
    assert found == [
        ("node.name", 3),
        ("files.max_size", 5),
        ("files.lo_watermark", 6),
        ("runs.user", 8),
    ]


def test_an_error_reads_as_a_place_a_key_and_a_sentence() -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of('[images]\nmax_size = "5 gigs"')
    assert str(caught.value) == (
        "c.toml:2: images.max_size: 'gigs' is not a unit of size; use one of B, KB, MB, GB, TB,"
        " PB, KiB, MiB, GiB, TiB, PiB"
    )


def test_an_unknown_key_is_told_with_the_one_that_was_meant() -> None:
    key, line, sentence = only_problem_of("[runs]\nmax_queu = 5")
    assert (key, line) == ("runs.max_queu", 2)
    assert "did you mean 'max_queue'?" in sentence


def test_an_unknown_section_is_told_with_the_one_that_was_meant() -> None:
    assert only_problem_of("[file]\nmax_size = 1")[2].endswith("did you mean 'files'?")


def test_a_key_in_the_wrong_section_is_told_with_its_own() -> None:
    assert "belongs under [upstream]" in only_problem_of('[node]\nheaders_file = "/x"')[2]


def test_a_value_where_a_section_belongs_is_told() -> None:
    assert only_problem_of("node = 3") == (
        "node",
        1,
        "is not a table; write [node] and its keys below",
    )


def test_a_syntax_error_names_line_and_column() -> None:
    key, line, sentence = only_problem_of('[node]\nname = "x\n')
    assert (key, line) == ("", 2)
    assert "not valid TOML at column" in sentence


def test_a_text_that_ends_too_early_is_placed_at_its_end() -> None:
    assert only_problem_of("[runs]\nallowed_mounts = [")[1] == 2


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 100_000])
def test_a_text_that_breaks_the_parser_itself_is_an_error_like_others(text: str) -> None:
    assert "is not valid TOML" in only_problem_of(text)[2]


def test_a_file_that_cannot_be_read_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read \(No such file"):
        load(tmp_path / "gone.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(binary)
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="is larger than"):
        load(huge)


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ('node.name = "a/b"', "node.name", "cannot name a node"),
        ("node.name = 3", "node.name", "put it in quotes"),
        ('node.state_dir = "var/lib"', "node.state_dir", "begin it with /"),
        ('node.state_dir = "/a/../b"', "node.state_dir", "'..'"),
        ('node.state_dir = "/"', "node.state_dir", "directory of its own"),
        ('node.state_dir = "/a:b"', "node.state_dir", 'has ":" in it'),
        (f'node.state_dir = "/{"d" * 128}"', "node.state_dir", "at most 128"),
        (f'api.socket = "/{"s" * 107}"', "api.socket", "at most 107"),
        ("api.socket_mode = 0o660", "api.socket_mode", 'as "0660"'),
        ('api.socket_mode = "0888"', "api.socket_mode", "three octal digits"),
        ('api.socket_mode = "0060"', "api.socket_mode", "shuts out"),
        ('api.socket_group = "no-such-group"', "api.socket_group", "there is no group"),
        ('api.listen = "9464"', "api.listen", "host:port"),
        ('api.listen = "host:99999"', "api.listen", "host:port"),
        ('engine.url = "/var/run/docker.sock"', "engine.url", "unix:///var/run/docker.sock"),
        ('engine.url = "unix://var/run"', "engine.url", "no engine"),
        ("engine.deadline_seconds = 0", "engine.deadline_seconds", "1 to 600"),
        ("engine.deadline_seconds = nan", "engine.deadline_seconds", "out of range"),
        ("engine.deadline_seconds = true", "engine.deadline_seconds", "not a number"),
        (f"engine.deadline_seconds = {'9' * 400}", "engine.deadline_seconds", "out of range"),
        ('store.url = "ftp://x"', "store.url", "file://, s3://, gs://, az://"),
        ('store.url = "s3://key:pw@bucket"', "store.url", "store.options"),
        ('store.url = "s3:///prefix"', "store.url", "names no bucket"),
        ('store.url = "file://srv/store"', "store.url", "three slashes"),
        ('store.url = "file:///"', "store.url", "one of its own"),
        ('store.options = "x"', "store.options", "is not a table"),
        ("store.options = {a = [1]}", "store.options", "'a' has to be"),
        ("files.max_size = 100", "files.max_size", "has no unit"),
        ('files.max_size = "1KiB"', "files.max_size", "1MiB to 1PiB"),
        ("files.high_watermark = 1.5", "files.high_watermark", "at most 1"),
        ("files.low_watermark = 0", "files.low_watermark", "above 0"),
        ("files.low_watermark = 0.95", "files.low_watermark", "is not below high_watermark"),
        ('images.registry = "https://r.example"', "images.registry", "without a scheme"),
        ("images.push = true", "images.push", "no images.registry"),
        ('images.push = "yes"', "images.push", "neither true nor false"),
        ('runs.working_dir = "/"', "runs.working_dir", "container's root"),
        ('runs.user = "0:0"', "runs.user", "may not run as root"),
        ('runs.user = "1000"', "runs.user", 'write "1000:1000"'),
        ('runs.user = "nobody-here"', "runs.user", "there is no user"),
        (f'runs.user = "{"9" * 5000}:1"', "runs.user", "larger than any"),
        ('runs.network = "host"', "runs.network", "own network"),
        ('runs.network = "container:x"', "runs.network", "no network"),
        ('runs.default_tier = "big"', "runs.default_tier", "choose one of small"),
        ("runs.max_queue = 0", "runs.max_queue", "1 to 1000000"),
        ("runs.max_queue = 1.5", "runs.max_queue", "not a whole number"),
        ('runs.allowed_mounts = "/data"', "runs.allowed_mounts", "is not a list"),
        ('runs.allowed_mounts = ["/"]', "runs.allowed_mounts", "whole host"),
        ('runs.allowed_mounts = ["/var/lib"]', "runs.allowed_mounts", "state directory"),
        ("usage.interval_seconds = 0", "usage.interval_seconds", "0.1 to 3600"),
        ('upstream.kind = "nats"', "upstream.kind", '"none", "file", "http"'),
        ('upstream.kind = "http"', "upstream.url", "is missing"),
        ('upstream.kind = "file"', "upstream.path", "is missing"),
        ('upstream.url = "ws://x"', "upstream.url", "begin with http://"),
        ('upstream.url = "https://u:pw@x"', "upstream.url", "headers_file"),
        ("retention.runs_days = 0", "retention.runs_days", "above 0"),
        ('access.read = ["ann"]', "access.read", "user:NAME"),
        ('access.read = ["group:"]', "access.read", "names nobody"),
        ("[tiers]", "tiers", "holds no tier"),
        ("[tiers]\nmax_runs = 1", "tiers.max_runs", "[tiers.small]"),
        ("[tiers.'a b']", "tiers.a b", "a tier's name"),
        ("tiers.a.cpu = 1", "tiers.a.cpu", "did you mean 'cpus'"),
        ("tiers.a.cpus = 0", "tiers.a.cpus", "0.01 to 4096"),
        ('tiers.a.memory = "1MiB"', "tiers.a.memory", "8MiB"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_right(text: str, key: str, says: str) -> None:
    found = {k: sentence for k, line, sentence in problems_of(text) if line}
    assert says in found[key]


def test_a_problem_never_shows_a_password() -> None:
    assert "hunter2" not in only_problem_of('store.url = "ftp://me:hunter2@host"')[2]


def test_a_host_whose_name_will_not_do_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match=r"node\.name: is not set, and the host's own name"):
        parse("", path=Path("c.toml"), host=Host(name="(none)", cpus=1))


@pytest.mark.parametrize(
    "root", ["/var/run/docker.sock", "/run/executord", "/var/lib/executord/runs", "/srv/store/a"]
)
def test_runs_may_not_mount_what_the_daemon_lives_from(root: str) -> None:
    text = f'store.url = "file:///srv/store"\nruns.allowed_mounts = ["/data", "{root}"]'
    assert "would let runs reach" in only_problem_of(text)[2]


def test_a_store_may_not_hold_the_state_directory() -> None:
    key, line, _ = only_problem_of('node.state_dir = "/srv/a/b"\nstore.url = "file:///srv/a"')
    assert (key, line) == ("store.url", 2)


def test_a_user_is_known_by_name_and_by_number() -> None:
    assert settings_of('runs.user = "daemon"').runs.user == UserIds(1, 1)
    assert settings_of('runs.user = "daemon:0"').runs.user == UserIds(1, 0)
    assert settings_of('runs.user = "7:8"').runs.user == UserIds(7, 8)

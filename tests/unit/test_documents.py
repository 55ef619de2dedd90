"""What the documents say is so: their examples work, their names exist, their tables are true."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from executord.__main__ import main as executord
from executord.api.access import Role
from executord.cli.main import cli as executorctl
from executord.config import Host, parse
from executord.core.reasons import MEANINGS, Meaning, Reason, Side
from executord.core.states import State

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
DOCUMENTS = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("executord/**/*.md"),
        *ROOT.glob("tests/**/*.md"),
        *ROOT.glob("systemd/**/*.md"),
    )
)
PROGRAMS: dict[str, click.Command] = {"executord": executord, "executorctl": executorctl}
BAD_CONFIG = """\
[runs]
network = "none"
max_queu = 5
[files]
max_size = 20
low_watermark = 0.95
"""


def blocks(document: str, *languages: str) -> list[str]:
    """The contents of a document's fenced blocks in these languages."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL)
    return [content for language, content in fenced if language in languages]


def commands(document: str) -> Iterator[list[str]]:
    """Every command of our programs in shell blocks, in sessions after `$ `, and in `code`."""
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)
    for block in blocks(document, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield shlex.split(line[2:])
    for code in re.findall(r"`(executor(?:d|ctl) [^`]+)`", document):
        yield shlex.split(code)


def section(document: str, title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#|\Z)", document, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {title!r}"
    return found[1]


def table(text: str) -> list[tuple[str, ...]]:
    """The rows of a text's first table, without its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]
    return cells[2:]


def check_usage(program: str, command: click.Command, words: list[str]) -> None:
    """Raises click.UsageError where the command has no such option or subcommand."""
    context = click.Context(command, info_name=program)
    _, rest, _ = command.make_parser(context).parse_args(list(words))
    if isinstance(command, click.Group) and rest:
        chosen = command.get_command(context, rest[0])
        if chosen is None:
            raise click.UsageError(f"{program} has no command {rest[0]!r}")
        check_usage(f"{program} {rest[0]}", chosen, rest[1:])


# -- Commands --------------------------------------------------------------------------------------


def test_every_command_of_the_readme_exists_with_its_options() -> None:
    checked = 0
    for words in commands(README):
        if words and words[0] in PROGRAMS:
            check_usage(words[0], PROGRAMS[words[0]], words[1:])
            checked += 1
    assert checked > 20


def test_a_command_that_does_not_exist_would_be_found() -> None:
    for words in ("frobnicate", "ps --no-such-option", "cache melt"):
        with pytest.raises(click.UsageError):
            check_usage("executorctl", executorctl, words.split())


def test_every_make_target_of_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README + CHANGELOG, flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_the_readme_names_only_variables_that_are_read() -> None:
    code = "".join(path.read_text() for path in (ROOT / "executord").rglob("*.py"))
    for name in set(re.findall(r"EXECUTORD_\w+", README)):
        assert f'"{name}"' in code, name


# -- Configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("example", blocks(README, "toml"))
def test_every_configuration_of_the_readme_loads(example: str) -> None:
    parse(example, path=Path("README.md"), host=Host(name="node", cpus=8))


def test_the_readme_shows_what_check_config_says(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(BAD_CONFIG)
    result = CliRunner().invoke(executord, ["check-config", str(file)])
    said = result.output.replace(f"{tmp_path}/", "")
    assert result.exit_code == 2
    assert f"$ executord check-config bad.toml\n{said}" in blocks(README, "console")


def test_check_config_prints_what_a_configuration_amounts_to() -> None:
    result = CliRunner().invoke(executord, ["check-config", str(ROOT / "config.example.toml")])
    assert result.exit_code == 0
    assert 'state_dir = "/var/lib/executord"' in result.output
    parse(result.output, path=Path("printed"))


def test_serve_refuses_a_wrong_configuration_with_78() -> None:
    result = CliRunner().invoke(executord, ["serve", "--config", "/nowhere/x.toml"])
    assert result.exit_code == 78
    assert "/nowhere/x.toml: cannot be read (No such file or directory)" in result.output


# -- Tables ----------------------------------------------------------------------------------------


def end_of(reason: Reason, meaning: Meaning) -> str:
    by_request = {Reason.COMPLETED: "Succeeded", Reason.STOPPED_BY_REQUEST: "Stopped"}
    by_side = {Side.USER: "Failed", Side.PLATFORM: "Error"}
    return by_request.get(reason) or by_side[meaning.side]


def test_the_readmes_reasons_are_the_codes() -> None:
    assert table(section(README, "Reasons")) == [
        (f"`{reason}`", end_of(reason, meaning), meaning.sentence, meaning.advice)
        for reason, meaning in MEANINGS.items()
    ]


def test_the_readmes_states_are_the_codes() -> None:
    assert {row[0] for row in table(section(README, "States"))} == set(State)


def test_the_readmes_roles_are_the_codes() -> None:
    assert {row[0].strip("`") for row in table(section(README, "The socket"))} == set(Role)


# -- Links and forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in target and not target.startswith("#"):
            assert (document.parent / target.partition("#")[0]).exists(), target


def test_the_changelog_keeps_its_form() -> None:
    versions = re.findall(r"^## (.*)$", CHANGELOG, flags=re.MULTILINE)
    kinds = re.findall(r"^### (.*)$", CHANGELOG, flags=re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    for version in versions[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", version)
    assert kinds
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_documents_hold_no_unfinished_places() -> None:
    for name, text in (("README", README), ("CHANGELOG", CHANGELOG)):
        assert not re.findall(r"^(?:TOUR|BENCH|LAYOUT|REASONS|TODO.*)$", text, re.MULTILINE), name

"""The daemon's command line: `executord serve`, `executord check-config`."""

import sys
from pathlib import Path

import click

from executord import config, logs

_WRONG_CONFIGURATION = 2
_EX_CONFIG = 78  # sysexits.h: so that a unit can say "do not restart on this one"

_file = click.Path(path_type=Path, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="executord", prog_name="executord")
def main() -> None:
    """Runs other people's code in containers on this node, and loses none of it."""


@main.command()
@click.option(
    "--config",
    "file",
    type=_file,
    required=True,
    metavar="FILE",
    help="The configuration (TOML).",
)
def serve(file: Path) -> None:
    """Serve the node until SIGTERM; runs go on without the daemon.

    Ends with 0 after SIGTERM, 74 when the journal cannot be written, 75 when another daemon has
    the state directory, 78 when the configuration is wrong.
    """
    settings = _load(file, exit_status=_EX_CONFIG)
    try:
        logs.configure(config.log_settings())
    except config.EnvironmentVariableError as error:
        click.echo(f"executord: {error}", err=True)
        sys.exit(_EX_CONFIG)
    from executord import app  # noqa: PLC0415 - check-config and --version need none of it

    sys.exit(app.serve(settings))


@main.command("check-config")
@click.argument("file", type=_file)
def check_config(file: Path) -> None:
    """Print what the configuration amounts to, or everything that is wrong with it (exit 2)."""
    click.echo(config.render(_load(file, exit_status=_WRONG_CONFIGURATION)), nl=False)


def _load(file: Path, *, exit_status: int) -> config.Settings:
    try:
        return config.load(file)
    except config.ConfigError as error:
        count = len(error.problems)
        click.echo(error, err=True)
        click.echo(f"{count} problem{'s' if count > 1 else ''}", err=True)
        sys.exit(exit_status)


if __name__ == "__main__":
    main(prog_name="executord")

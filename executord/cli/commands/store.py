"""`executorctl push`, `pull` and `diff`: project files in, out, and what differs."""

from dataclasses import asdict
from pathlib import Path

import click

from executord.cli import store as file_store
from executord.cli.assignment import this_user
from executord.cli.session import Command, Session, pass_session
from executord.cli.store import store_option
from executord.cli.units import plural, size

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("push", cls=Command)
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option("-p", "--project", metavar="OWNER/NAME", help="You and the directory, if not given.")
@click.option("-m", "--message", default="", help="Kept with the revision.")
@store_option
@pass_session
def push_command(
    session: Session, *, directory: Path, project: str | None, message: str, store: str | None
) -> None:
    """Store a directory as a new revision of a project.

    Prints the revision's digest. Only what the store does not have yet is sent.
    """
    author = this_user()
    pushed = file_store.push(
        session,
        directory,
        project=project or file_store.project_of(directory, author),
        author=author,
        message=message,
        store=store,
    )
    if session.as_json:
        session.output.json(asdict(pushed))
    else:
        session.output.line(pushed.revision)


@click.command("pull", cls=Command)
@click.argument("revision", metavar="REV")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@store_option
@pass_session
def pull_command(session: Session, *, revision: str, directory: Path, store: str | None) -> None:
    """Write a revision's files into a directory.

    REV is a digest, the beginning of one, or a project's name for its newest revision. DIR must be
    empty or not there.
    """
    pulled = file_store.pull(session, revision, directory, store=store)
    if session.as_json:
        session.output.json(asdict(pulled))
    else:
        session.output.note(
            f"{plural(pulled.files, 'file')}, {size(pulled.bytes)}, written to {directory}."
        )


@click.command("diff", cls=Command)
@click.argument("old", metavar="REV")
@click.argument("new", metavar="REV")
@store_option
@pass_session
def diff_command(session: Session, *, old: str, new: str, store: str | None) -> None:
    """List what differs between two revisions.

    A for added, M for changed, D for deleted. REV is as for `pull`.
    """
    changes = sorted(file_store.diff(session, old, new, store=store), key=lambda c: c.path)
    if session.as_json:
        session.output.json({"changes": [asdict(change) for change in changes]})
        return
    for change in changes:
        session.output.change(change.kind, change.size_bytes, change.path)
    if not changes:
        session.output.note("Nothing differs.")

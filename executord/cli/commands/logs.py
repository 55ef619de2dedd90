"""`executorctl logs`: a run's console, now or as it comes."""

import base64

import click

from executord.cli.console import ConsoleWriter
from executord.cli.resume import Patience, Record, console, make_contact
from executord.cli.session import Command, Session, pass_session, run_argument


@click.command("logs", cls=Command)
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("--since", metavar="OFFSET", type=click.IntRange(min=0), default=0)
@click.option(
    "--stream", type=click.Choice(["stdout", "stderr", "build"]), help="Only this part of it."
)
@click.option("-t", "--timestamps", is_flag=True, help="The time before each line.")
@click.option("--raw", is_flag=True, help="Let control sequences reach the terminal.")
@pass_session
def logs_command(
    session: Session,
    *,
    run_id: str,
    follow: bool,
    since: int,
    stream: str | None,
    timestamps: bool,
    raw: bool,
) -> None:
    """Print a run's console output.

    What the code wrote to stdout goes to stdout, everything else to stderr. OFFSET counts bytes of
    output; a following survives restarts of the daemon without loss or repetition.
    """
    make_contact(session.client)
    records = console(
        session.client,
        run_id,
        since=since,
        stream=stream,
        follow=follow,
        patience=Patience(session.output.note),
    )
    if session.as_json:
        for record in records:
            session.output.json(_as_json(record), compact=True)
        return
    writer = ConsoleWriter(raw=raw, timestamps=timestamps)
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.end()


def _as_json(record: Record) -> dict[str, object]:
    shown: dict[str, object] = {
        "offset": record.offset,
        "time": record.time,
        "stream": record.stream,
        "lost_bytes": record.lost_bytes,
    }
    try:
        shown["data"] = record.data.decode()
    except UnicodeDecodeError:
        shown["data_base64"] = base64.b64encode(record.data).decode()
    return shown

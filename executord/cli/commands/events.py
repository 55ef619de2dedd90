"""`executorctl events`: every transition of every run of this node."""

import click

from executord.cli.client import JsonObject
from executord.cli.describe import costs_words, entered_state, left_state
from executord.cli.resume import Patience, events, make_contact, sequence_of
from executord.cli.session import Command, Session, pass_session
from executord.cli.terminal import safe
from executord.cli.units import moment


@click.command("events", cls=Command)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now.")
@click.option("--after", metavar="SEQ", type=click.IntRange(min=0), default=0)
@pass_session
def events_command(session: Session, *, follow: bool, after: int) -> None:
    """Print state transitions of all runs.

    In the node's order, after the sequence number SEQ; with --json as CloudEvents, one a line.
    A following survives restarts of the daemon without loss or repetition.
    """
    output = session.output
    make_contact(session.client)
    for event in events(session.client, after=after, follow=follow, patience=Patience(output.note)):
        if session.as_json:
            output.json(event, compact=True)
        else:
            output.line(_line(session, event), at_once=follow)


def _line(session: Session, event: JsonObject) -> str:
    data = event.get("data") or {}
    state = entered_state(data)
    before = safe(left_state(data))
    words = [
        str(data.get("detail") or data.get("sentence") or data.get("reason") or ""),
        costs_words(data.get("costs") or ()),
    ]
    return (
        f"{sequence_of(event):>6}  {moment(data.get('time') or event.get('time'), precise=True)}  "
        f"{safe(data.get('run_id', ''))}  {f'{before} → ' if before else ''}"
        f"{session.output.state(state)}  {safe('; '.join(word for word in words if word))}"
    ).rstrip()

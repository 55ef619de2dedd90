"""`executorctl submit`: an assignment as the dispatcher would send it."""

import click

from executord.cli.assignment import new_run_id, read_assignment
from executord.cli.errors import ConnectionLostError
from executord.cli.session import Command, Session, pass_session


@click.command("submit", cls=Command)
@click.argument("source", metavar="FILE|-", type=click.Path(allow_dash=True, dir_okay=False))
@pass_session
def submit_command(session: Session, *, source: str) -> None:
    """Submit an assignment from a JSON file.

    Prints the run's id. Submitting the same content under the same id again is safe.
    """
    body = read_assignment(source)
    body.setdefault("id", new_run_id())
    try:
        run = session.client.post("/v1/runs", body)
    except ConnectionLostError:  # the id makes it safe to say it twice
        run = session.client.post("/v1/runs", body)
    if session.as_json:
        session.output.json(run)
    else:
        session.output.line(str(run["id"]))
        session.output.note(f"Follow it with `executorctl logs -f {run['id']}`.")

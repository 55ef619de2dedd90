"""`executorctl cache verify`: is what the node keeps still what it should be?"""

import sys
import time

import click

from executord.cli.client import JsonObject
from executord.cli.errors import EXIT_FAILED, CliError
from executord.cli.session import Command, Session, pass_session
from executord.cli.terminal import safe
from executord.cli.units import duration, plural, size

_NOTE_SECONDS = 2.0
_MOST_SHOWN = 50


@click.command("verify", cls=Command)
@click.option("--repair", is_flag=True, help="Put aside what is bad, and fetch it again.")
@pass_session
def verify_command(session: Session, *, repair: bool) -> None:
    """Check every cached file against its digest.

    Without --repair nothing is changed, but no run gets what was found bad before it is mended.
    Exit code 1 when something bad is left. Ctrl-C gives the check up.
    """
    report: JsonObject | None = None
    told_at = time.monotonic()
    for step in session.client.stream(
        "/v1/cache/verify", body={"repair": repair}, quiet_seconds=600.0, follow=True
    ):
        if "good" in step:
            report = step
        elif time.monotonic() - told_at >= _NOTE_SECONDS:
            told_at = time.monotonic()
            session.output.note(_progress(step))
    if report is None:
        raise CliError("The daemon ended the check without a report.", advice="See its log.")
    if session.as_json:
        session.output.json(report)
    else:
        _show(session, report, repair=repair)
    if not report.get("good"):
        sys.exit(EXIT_FAILED)


def _progress(step: JsonObject) -> str:
    done, total = step.get("bytes_done") or 0, step.get("bytes_total") or 0
    share = f" of about {size(total)}" if total else ""
    return f"{safe(step.get('what', ''))}: {size(done)}{share}"


def _show(session: Session, report: JsonObject, *, repair: bool) -> None:
    output = session.output
    damaged, mended = int(report.get("damaged") or 0), int(report.get("mended") or 0)
    output.line(
        f"Looked at {plural(report.get('blobs') or 0, 'blob')}, "
        f"{plural(report.get('snapshots') or 0, 'tree')} as runs see them, and "
        f"{plural((report.get('trees') or 0) + (report.get('revisions') or 0), 'small object')}; "
        f"read {size(report.get('bytes_read') or 0)} in {duration(report.get('seconds') or 0)}."
    )
    objects = report.get("objects") or []
    for found in objects[:_MOST_SHOWN]:
        runs = ", ".join(safe(run) for run in found.get("runs") or ())
        output.line(
            f"{'mended' if found.get('mended') else 'BAD   '}  {found.get('kind', '')} "
            f"{safe(found.get('digest', ''))}: {safe(found.get('what', ''))}"
            f"{f' (live runs: {runs})' if runs else ''}"
        )
        if found.get("why_not"):
            output.line(f"        not mended: {safe(found['why_not'])}")
    if damaged > _MOST_SHOWN:
        output.line(f"… and {plural(damaged - _MOST_SHOWN, 'more')}; --json has up to 1000")
    for skipped in report.get("skipped") or ():
        output.warn(f"not looked at: {safe(skipped)}")
    if not damaged:
        output.line("All of it is right.")
        return
    output.line(f"{damaged:,} bad, {mended:,} mended.")
    if damaged > mended and repair:
        output.note(
            "No run gets what was not mended: a run that needs it fetches it again. Repeat this "
            "when the store is back; where the store has no good copy, push the files again."
        )
    elif damaged > mended:
        output.note("`executorctl cache verify --repair` puts aside and fetches again what is bad.")

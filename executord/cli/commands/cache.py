"""`executorctl cache` and `images`: what the node keeps, and how to get room."""

import click

from executord.cli.cache.prefetch import prefetch_command
from executord.cli.cache.simulate import simulate_command
from executord.cli.cache.verify import verify_command
from executord.cli.cache.views import show_cache, show_entries
from executord.cli.session import Command, Group, Session, pass_session
from executord.cli.units import ago, duration, plural, short_digest, size

_LONG_SECONDS = 3600.0
_TREES = 20


@click.group("cache", cls=Group, invoke_without_command=True)
@click.pass_context
def cache_command(context: click.Context) -> None:
    """Show, prune, verify, prefetch or simulate the file cache."""
    if context.invoked_subcommand is None:
        context.invoke(show_command)


@cache_command.command("show")
@pass_session
def show_command(session: Session) -> None:
    """Show how full the caches are and how often they helped."""
    answer = session.client.get("/v1/cache")
    trees = session.client.get("/v1/cache/trees", limit=_TREES)
    if session.as_json:
        session.output.json({**answer, "trees": trees})
        return
    show_cache(session.output, answer)
    if trees.get("entries"):
        session.output.line()
        show_entries(session.output, trees["entries"])
        more = int(trees.get("total") or 0) - len(trees["entries"])
        if more > 0:
            session.output.line(f"… and {plural(more, 'more tree')}")


@cache_command.command("trees")
@click.option("-n", "limit", type=click.IntRange(1, 10_000), default=1000, help="At most so many.")
@pass_session
def trees_command(session: Session, *, limit: int) -> None:
    """List the project trees that are kept ready, last used first."""
    answer = session.client.get("/v1/cache/trees", limit=limit)
    entries = answer.get("entries") or []
    if session.as_json:
        session.output.json(answer)
    elif session.quiet:
        for entry in entries:
            session.output.line(str(entry.get("digest", "")))
    elif not entries:
        session.output.note("No trees yet.")
    else:
        show_entries(session.output, entries)


@cache_command.command("prune")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@pass_session
def prune_command(session: Session, *, dry_run: bool) -> None:
    """Remove from the file cache what no run needs."""
    answer = session.client.post(
        "/v1/cache/prune", {"dry_run": dry_run}, deadline_seconds=_LONG_SECONDS
    )
    if session.as_json:
        session.output.json(answer)
        return
    victims = answer.get("victims") or []
    if victims and not session.quiet:
        show_entries(session.output, victims)
    total = int(answer.get("victims_total") or len(victims))
    verb = "would go, freeing" if dry_run else "went, freeing"
    kind = "entry" if total == 1 else "entries"
    session.output.line(f"{total:,} {kind} {verb} {size(answer.get('freed_bytes') or 0)}.")
    coming = int(answer.get("coming_bytes") or 0)
    if coming:
        session.output.note(f"Another {size(coming)} had gone before and are being deleted.")


cache_command.add_command(verify_command)
cache_command.add_command(prefetch_command)
cache_command.add_command(simulate_command)


@click.command("images", cls=Command)
@pass_session
def images_command(session: Session) -> None:
    """List the images the node keeps."""
    answer = session.client.get("/v1/cache/images")
    entries = answer.get("entries") or []
    if session.as_json:
        session.output.json(answer)
    elif session.quiet:
        for entry in entries:
            session.output.line(str(entry.get("reference", "")))
    elif not entries:
        session.output.note("No images yet.")
    else:
        session.output.table(
            ("image", "id", "made by", "took", "size", "own", "last used", "used by"),
            [
                (
                    entry.get("reference", ""),
                    short_digest(str(entry.get("image_id", ""))),
                    entry.get("made_by", ""),
                    duration(entry.get("made_seconds")),
                    size(entry.get("size_bytes")),
                    size(entry.get("own_bytes")),
                    ago(entry.get("last_used")),
                    ", ".join(entry.get("used_by") or ()),
                )
                for entry in entries
            ],
            right=("took", "size", "own"),
        )

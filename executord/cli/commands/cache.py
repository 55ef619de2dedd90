"""`executorctl cache` and `images`: what the node keeps, and how to get room."""

from pathlib import Path

import click

from executord.cli.assignment import read_assignment
from executord.cli.client import JsonObject
from executord.cli.session import Command, Group, Session, pass_session
from executord.cli.units import ago, duration, plural, short_digest, size

_LONG_SECONDS = 3600.0
_TREES = 20


@click.group("cache", cls=Group, invoke_without_command=True)
@click.pass_context
def cache_command(context: click.Context) -> None:
    """Show, prune, verify or prefetch the file cache."""
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
    _stats(session, answer)
    if trees.get("entries"):
        session.output.line()
        _entries(session, trees["entries"])
        more = int(trees.get("total") or 0) - len(trees["entries"])
        if more > 0:
            session.output.line(f"… and {plural(more, 'more tree')}")


def _stats(session: Session, answer: JsonObject) -> None:
    files, images = answer.get("files") or {}, answer.get("images") or {}
    hits, misses = files.get("hits_files") or 0, files.get("misses_files") or 0
    limit = files.get("max_bytes")
    session.output.facts(
        [
            (
                "Files",
                f"{plural(files.get('blobs') or 0, 'blob')}, {size(files.get('blob_bytes'))}"
                + (f" of {size(limit)}" if limit else ""),
            ),
            ("Snapshots", files.get("snapshots")),
            ("Workspaces", files.get("workspaces")),
            (
                "From cache",
                f"{hits / (hits + misses):.1%} of files ({size(files.get('hits_bytes'))}; "
                f"{size(files.get('misses_bytes'))} fetched)"
                if hits + misses
                else "nothing asked for yet",
            ),
            ("Evicted", size(files.get("evicted_bytes"))),
            ("Disk free", size(files.get("disk_free_bytes"))),
            (
                "Images",
                f"{plural(images.get('images') or 0, 'image')}, {size(images.get('own_bytes'))}",
            ),
        ]
    )


def _entries(session: Session, entries: list[JsonObject]) -> None:
    session.output.table(
        ("digest", "kind", "files", "size", "own", "last used", "pinned by"),
        [
            (
                short_digest(str(entry.get("digest", ""))),
                entry.get("kind", ""),
                f"{entry.get('files') or 0:,}",
                size(entry.get("size_bytes")),
                size(entry.get("own_bytes")),
                ago(entry.get("last_used")),
                ", ".join(entry.get("pinned_by") or ()),
            )
            for entry in entries
        ],
        right=("files", "size", "own"),
    )


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
        _entries(session, victims)
    total = int(answer.get("victims_total") or len(victims))
    verb = "would go, freeing" if dry_run else "went, freeing"
    kind = "entry" if total == 1 else "entries"
    session.output.line(f"{total:,} {kind} {verb} {size(answer.get('freed_bytes') or 0)}.")


@cache_command.command("verify")
@pass_session
def verify_command(session: Session) -> None:
    """Check every cached file against its digest."""
    _print(session, session.client.post("/v1/cache/verify", deadline_seconds=_LONG_SECONDS))


@cache_command.command("prefetch")
@click.argument("source", metavar="FILE|-", type=click.Path(path_type=Path, allow_dash=True))
@pass_session
def prefetch_command(session: Session, *, source: Path) -> None:
    """Fetch what FILE (JSON) names before a run needs it."""
    body = read_assignment(str(source))
    answer = session.client.post("/v1/cache/prefetch", body, deadline_seconds=_LONG_SECONDS)
    _print(session, answer)


def _print(session: Session, answer: JsonObject) -> None:
    if session.as_json:
        session.output.json(answer)
    else:
        session.output.facts(list(answer.items()))


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

"""How the file cache is drawn for people: its use, its trees, what was evicted and why."""

from collections.abc import Sequence

from executord.cli.client import JsonObject
from executord.cli.output import Output
from executord.cli.terminal import safe
from executord.cli.units import ago, duration, plural, short_digest, size

_BAR_WIDTH = 30
_KINDS = {
    "blobs": "blobs",
    "snapshots": "snapshots, besides blobs",
    "layers": "layers, besides blobs",
    "live_workspaces": "live runs' own files",
    "kept_workspaces": "kept workspaces",
    "quarantine": "quarantine",
    "partial_blobs": "half-fetched large files",
    "pack_indexes": "indexes of the store's packs",
}
_TRIGGERS = {
    "high_watermark": "above the high watermark",
    "inode_watermark": "above the inodes' high watermark",
    "free_space": "too little free on the disk",
    "free_inodes": "too few free inodes on the disk",
    "room_for_a_run": "room for a run's files",
    "prune": "asked to prune",
}
_EVICTIONS = 5


def show_cache(output: Output, answer: JsonObject) -> None:
    files, images = answer.get("files") or {}, answer.get("images") or {}
    report = files.get("report") or {}
    output.facts(
        [
            ("File cache", _use(output, files, report)),
            ("Inodes", _inodes(report)),
            (
                "Holds",
                (
                    f"{plural(files.get('blobs') or 0, 'blob')}, "
                    f"{plural(files.get('snapshots') or 0, 'snapshot')}, "
                    f"{plural(files.get('workspaces') or 0, 'workspace')}"
                ),
            ),
            ("From cache", _hits(files)),
            ("In all", _hits_in_all(report)),
            ("Sharing saves", size(report["saved_bytes"]) if report else None),
            ("Fetching", _fetching(report)),
            ("Evicted", _evicted(files, report)),
            ("Disk free", _free(files, report)),
            ("Damage", _damage(files)),
            ("Counted", _counted(report)),
            (
                "Images",
                f"{plural(images.get('images') or 0, 'image')}, {size(images.get('own_bytes'))}",
            ),
        ]
    )
    _kinds(output, report)
    _kept(output, report)
    _evictions(output, report)


def show_entries(output: Output, entries: Sequence[JsonObject]) -> None:
    """Trees, or victims of a prune: with why, where that is told."""
    if any(entry.get("why") for entry in entries):
        output.table(
            ("digest", "kind", "files", "frees", "last used", "why"),
            [
                (
                    short_digest(str(entry.get("digest", ""))),
                    entry.get("kind", ""),
                    f"{entry.get('files') or 0:,}",
                    size(entry.get("own_bytes")),
                    ago(entry.get("last_used")),
                    entry.get("why", ""),
                )
                for entry in entries
            ],
            right=("files", "frees"),
        )
        return
    output.table(
        (
            "digest",
            "kind",
            "on",
            "files",
            "size",
            "own",
            "uses",
            "again",
            "last used",
            "state",
            "pinned by",
        ),
        [
            (
                short_digest(str(entry.get("digest", ""))),
                entry.get("kind", ""),
                _base(entry),
                f"{entry.get('files') or 0:,}",
                size(entry.get("size_bytes")),
                size(entry.get("own_bytes")),
                f"{entry.get('uses') or 0:.1f}",
                duration(entry.get("cost_seconds")),
                ago(entry.get("last_used")),
                entry.get("state", ""),
                ", ".join(entry.get("pinned_by") or ()),
            )
            for entry in entries
        ],
        right=("files", "size", "own", "uses", "again"),
    )


def _base(entry: JsonObject) -> str:
    if not entry.get("base"):
        return ""
    return f"{short_digest(str(entry['base']))} ({entry.get('depth') or 1} deep)"


def _use(output: Output, files: JsonObject, report: JsonObject) -> str:
    used = report.get("used_bytes", files.get("blob_bytes")) or 0
    most = files.get("max_bytes") or 0
    text = f"{size(used)} of {size(most)}" if most else size(used)
    if not most or not output.colour:
        return text
    share = min(1.0, used / most)
    limits = report.get("limits") or {}
    style = "green"
    if share > (limits.get("low_watermark") or 1.0):
        style = "yellow"
    if share > (limits.get("high_watermark") or 1.0):
        style = "red"
    full = round(share * _BAR_WIDTH)
    return f"{output.styled('█' * full, style)}{'░' * (_BAR_WIDTH - full)} {text} ({share:.0%})"


def _inodes(report: JsonObject) -> str | None:
    if not report:
        return None
    most = (report.get("limits") or {}).get("max_inodes")
    return f"{report['used_inodes']:,}" + (f" of {most:,}" if most else "")


def _hits(files: JsonObject) -> str:
    hits, misses = files.get("hits_files") or 0, files.get("misses_files") or 0
    if not hits + misses:
        return "nothing asked for yet"
    return (
        f"{hits / (hits + misses):.1%} of files ({size(files.get('hits_bytes'))}; "
        f"{size(files.get('misses_bytes'))} fetched)"
    )


def _hits_in_all(report: JsonObject) -> str | None:
    asked = report.get("in_all") or {}
    if asked.get("run_hit_ratio") is None:
        return None
    parts = [
        f"{asked[f'{what}_hit_ratio']:.1%} of {what}s"
        for what in ("run", "file", "byte")
        if asked.get(f"{what}_hit_ratio") is not None
    ]
    return f"{', '.join(parts)}, since {ago(asked.get('since'))}"


def _fetching(report: JsonObject) -> str | None:
    fetched = report.get("fetched") or {}
    seconds = fetched.get("seconds") or 0
    if not seconds:
        return None
    files, count = (fetched.get("files") or 0) / seconds, fetched.get("files") or 0
    rate = size((fetched.get("bytes") or 0) / seconds)
    return f"{rate}/s, {files:,.0f} files/s ({plural(count, 'file')} so far)"


def _evicted(files: JsonObject, report: JsonObject) -> str:
    coming = report.get("coming_bytes") or 0
    text = f"{size(files.get('evicted_bytes'))} since the start"
    return text + (f", {size(coming)} of it being deleted" if coming else "")


def _free(files: JsonObject, report: JsonObject) -> str:
    limits = report.get("limits") or {}
    text = size(files.get("disk_free_bytes"))
    if limits.get("min_free_bytes"):
        text += f", of which {size(limits['min_free_bytes'])} stay free"
    if limits.get("disk_free_inodes") is not None:
        text += f"; {limits['disk_free_inodes']:,} inodes"
    return text


def _damage(files: JsonObject) -> str | None:
    if not files.get("damaged") and not files.get("quarantine_bytes"):
        return None
    return (
        f"{files.get('damaged') or 0} found, {files.get('mended') or 0} mended, "
        f"{size(files.get('quarantine_bytes'))} in quarantine"
    )


def _counted(report: JsonObject) -> str | None:
    counted = report.get("counted") or {}
    if not counted.get("at"):
        return None
    text = f"one by one {ago(counted['at'])}"
    if counted.get("corrections"):
        wrong = size(counted.get("corrected_bytes"))
        text += f"; {plural(counted['corrections'], 'correction')} so far, {wrong}"
    return text


def _kinds(output: Output, report: JsonObject) -> None:
    kinds = report.get("kinds") or {}
    rows = [
        (words, f"{use['entries']:,}", size(use["bytes"]), f"{use['inodes']:,}")
        for kind, words in _KINDS.items()
        if (use := kinds.get(kind)) and use["entries"]
    ]
    if rows:
        output.line()
        output.table(
            ("what", "entries", "on disk", "inodes"), rows, right=("entries", "on disk", "inodes")
        )


def _kept(output: Output, report: JsonObject) -> None:
    kept = report.get("kept") or []
    if not kept:
        return
    output.line()
    output.line("Kept workspaces are never evicted; `executorctl sync RUN` stores one.")
    output.table(
        ("run", "on disk", "since", "why"),
        [
            (each.get("run", ""), size(each.get("bytes")), ago(each.get("since")), each.get("why"))
            for each in kept
        ],
        right=("on disk",),
    )


def _evictions(output: Output, report: JsonObject) -> None:
    sums = report.get("evictions") or []
    if sums:
        output.line()
        output.table(
            ("evicted because of", "entries", "bytes", "inodes"),
            [
                (
                    _TRIGGERS.get(str(each.get("trigger")), str(each.get("trigger"))),
                    f"{each.get('entries') or 0:,}",
                    size(each.get("bytes")),
                    f"{each.get('inodes') or 0:,}",
                )
                for each in sums
            ],
            right=("entries", "bytes", "inodes"),
        )
    for each in (report.get("recent_evictions") or [])[-_EVICTIONS:]:
        output.line(
            f"  {ago(each.get('time'))}  {safe(each.get('kind', ''))} "
            f"{short_digest(str(each.get('digest', '')))}: {safe(each.get('why', ''))}"
        )

"""What lies beside the cache and can always be fetched again: given up when the disk is short."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import structlog

from executord.files.cache.blobs import Blobs
from executord.files.cache.layout import Layout

log = structlog.get_logger(__name__)


def give_up(layout: Layout, blobs: Blobs, is_enough: Callable[[], bool]) -> None:
    """Half-fetched files that nobody goes on with, then indexes of packs, the oldest first.

    Blocks. Raises OSError.
    """
    partial_bytes = blobs.forget_partials(idle_seconds=0.0)
    indexes = 0
    for path in _oldest_first(layout.pack_indexes):
        if is_enough():
            break
        path.unlink(missing_ok=True)
        indexes += 1
    log.info("cache.gave_up_beside", partial_bytes=partial_bytes, pack_indexes=indexes)


def _oldest_first(folder: Path) -> list[Path]:
    """A folder for each store holds the indexes of its packs."""
    found: list[tuple[float, Path]] = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.lstat().st_mtime, path))
    return [path for _, path in sorted(found)]

"""Blobs of the other kind, after the way of making working directories has changed.

Where runs get links to blobs, these are the daemon's own and read-only; otherwise they belong to
the user of runs, who has to be able to edit copies of them through an overlay. What an earlier
start has left of the other kind is turned into the kind in use, unless somebody stands on it.
"""

import os
from pathlib import Path

import structlog

from executord.files.cache.blobs import Blobs
from executord.files.cache.layout import Layout
from executord.files.cache.snapshots import Snapshots
from executord.files.workspace.modes.mode import ModeName

log = structlog.get_logger(__name__)


def settle(layout: Layout, blobs: Blobs, snapshots: Snapshots, mode: ModeName) -> None:
    """When everything is loaded and what live runs stand on is pinned. Raises OSError."""
    other = layout.blobs if mode == "hardlink" else layout.read_only_blobs
    if not other.is_dir() or not any(other.glob("*/*")):
        return
    _throw_away_unpinned(snapshots)
    if mode == "hardlink" and snapshots.grounds():
        log.info("cache.other_blobs_left", why="live runs stand on them")
        blobs.load()  # what was known of their number may be that of the others
        return
    taken = thrown = 0
    for shard in list(other.iterdir()):
        for path in list(shard.iterdir()):
            if _take_over(path, layout, blobs, linked=mode == "hardlink"):
                taken += 1
            elif layout.throw_away(path):
                thrown += 1
    blobs.load()
    log.info("cache.other_blobs_settled", taken_over=taken, thrown_away=thrown)


def _throw_away_unpinned(snapshots: Snapshots) -> None:
    """They are made of the other kind. What stands on others has to go first."""
    went = True
    while went:
        thrown = [ground for ground in snapshots.grounds() if snapshots.throw_away(ground)]
        went = bool(thrown)


def _take_over(path: Path, layout: Layout, blobs: Blobs, *, linked: bool) -> bool:
    """False for one that a run has a link to, and that would become the run's to write.

    Changed aside, so that none is ever seen half-changed.
    """
    key = blobs.key_at(path.name)
    if key is None or (not linked and path.stat().st_nlink > 1):
        return False
    target = Path(blobs.path(key))
    aside = layout.new_tmp()
    path.rename(aside)
    os.chown(aside, *blobs.owner)
    aside.chmod(blobs.mode_of(key))
    target.parent.mkdir(mode=0o700, exist_ok=True)
    aside.rename(target)
    return True

"""Faults planted into a file cache, which the fault suites have to notice."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executord.files.cache.blobs import BlobBatch
from executord.files.cache.grounds import About, Ground
from executord.files.cache.snapshots import Snapshots
from executord.files.project_files import ProjectFiles
from executord.files.system import disk


def _nothing(_: Any) -> None:
    """Where a sync belongs."""


class PublishingInParts(Snapshots):
    """Moves a snapshot into place a piece at a time, its description first."""

    def publish(self, aside: Path, ground: Ground, about: About) -> About:
        home = self._home(ground)
        staged = aside.with_name(f"{aside.name}-whole")
        aside.rename(staged)
        aside.mkdir()
        about = super().publish(aside, ground, about)
        for piece in ("trees", "blobs"):
            shutil.copyfile(staged / piece, home / piece)
        (staged / "root").rename(home / "root")
        shutil.rmtree(staged)
        return about


class RenamingBeforeSyncing(BlobBatch):
    """Makes blobs visible before their bytes are on disk."""

    def commit(self) -> None:
        real = disk.sync_filesystem
        setattr(disk, "sync_filesystem", _nothing)  # noqa: B010 - a planted fault
        try:
            super().commit()
        finally:
            setattr(disk, "sync_filesystem", real)  # noqa: B010


def _publish_in_parts(files: ProjectFiles) -> None:
    files._parts.snapshots.__class__ = PublishingInParts


def _rename_before_sync(files: ProjectFiles) -> None:
    blobs = files._parts.blobs

    def batch() -> BlobBatch:
        made = BlobBatch(blobs, blobs._layout, blobs.owner)
        made.__class__ = RenamingBeforeSyncing
        return made

    blobs.batch = batch  # type: ignore[method-assign]


def _no_check_at_first_use(files: ProjectFiles) -> None:
    async def believe(*_: Any, **__: Any) -> None:
        return None

    setattr(files._parts.integrity, "before_use", believe)  # noqa: B010


def _head_before_trees(files: ProjectFiles) -> None:
    """The project's head names a revision whose trees are sent afterwards."""
    store = files._parts.store
    later: list[Callable[[], None]] = []
    put_trees, move_head = store.put_trees, store.move_head

    def put_later(*arguments: Any, **named: Any) -> None:
        later.append(lambda: put_trees(*arguments, **named))

    def move_first(*arguments: Any) -> bool:
        moved = move_head(*arguments)
        for put in later:
            put()
        return moved

    setattr(store, "put_trees", put_later)  # noqa: B010
    setattr(store, "move_head", move_first)  # noqa: B010


def _store_that_does_not_sync(files: ProjectFiles) -> None:
    """The store says that a revision is durable while its objects are still in memory."""
    for module, name in ((disk, "sync_filesystem"), (disk, "sync_directory"), (os, "fsync")):
        setattr(module, name, _nothing)


_PLANTS: dict[str, Callable[[ProjectFiles], None]] = {
    "publish in parts": _publish_in_parts,
    "rename before sync": _rename_before_sync,
    "no check at first use": _no_check_at_first_use,
    "head before trees": _head_before_trees,
    "store that does not sync": _store_that_does_not_sync,
}


def plant(name: str, files: ProjectFiles) -> None:
    """To be done before it is opened."""
    _PLANTS[name](files)

"""A directory into the store, for a client: scan, send what is missing, move the project's head.

Any user who may write to the store can do it; nothing is chowned and no cache of the node is used.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from executord.files.cache.blobs import WrongContentError
from executord.files.client.scan import Place, Scanned, scan
from executord.files.client.statcache import StatCache
from executord.files.model import revisions, trees
from executord.files.model.trees import EMPTY_TREE, Entry
from executord.files.progress import Counter
from executord.files.store.store import NewBlob, Store, check_project
from executord.files.system.directories import Finder, MovedError, NotRegularError, read_chunks
from executord.ports import OnProgress, Revision

_TRIES = 3


class PushError(ValueError):
    """The directory cannot be pushed as it is; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """`files` and `bytes` are of the whole directory, the `sent` ones of what the store lacked.

    `head` is "conflict" when somebody else moved the project's head meanwhile: the revision is in
    the store, but the project does not point to it. "unchanged": the head has these files already,
    and `revision` is the head. `skipped` names what cannot be stored.
    """

    revision: str
    tree: str
    files: int
    bytes: int
    files_sent: int
    bytes_sent: int
    head: Literal["moved", "conflict", "unchanged"]
    skipped: tuple[str, ...] = ()


def push_directory(
    store: Store,
    directory: Path,
    project: str,
    *,
    author: str = "",
    message: str = "",
    on_progress: OnProgress | None = None,
    cache_home: Path | None = None,
) -> Pushed:
    """Raises PushError, BadProjectError, and FaultError of the store. Blocks.

    `cache_home` is where hashes are remembered between pushes (default: the user's cache folder).
    """
    check_project(project)
    if not directory.is_dir():
        raise PushError(f"{directory} is not a directory.")
    cache = StatCache(directory, cache_home)
    for _ in range(_TRIES):
        base = store.head(project)
        base_tree = store.revision(base).tree if base else EMPTY_TREE
        scanned = _scan(directory, cache, on_progress)
        if base and scanned.tree == base_tree:
            cache.save()
            return _result(base, scanned, None, "unchanged")
        try:
            sent = _send(store, directory, scanned, base_tree, on_progress)
        except _ChangedError as error:
            cache.forget(error.path)
            changed = error.path
            continue
        cache.save()
        revision = Revision(
            tree=scanned.tree, parent=base, author=author, message=message, time=time.time()
        )
        digest, data = revisions.encode(revision)
        store.put_revision(digest, data)
        moved = store.move_head(project, base, digest)
        return _result(digest, scanned, sent, "moved" if moved else "conflict")
    raise PushError(f"{directory}/{changed} keeps changing while it is being pushed.")


class _ChangedError(Exception):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def _scan(directory: Path, cache: StatCache, on_progress: OnProgress | None) -> Scanned:
    counter = Counter("scanning", on_progress)
    try:
        scanned = scan(directory, cache, counter.add)
    except OSError as error:
        raise PushError(
            f"{directory} cannot be read: {error.strerror} ({error.filename})."
        ) from error
    except MovedError as error:
        raise PushError(f"{directory}: {error}.") from error
    counter.done()
    return scanned


def _send(
    store: Store,
    directory: Path,
    scanned: Scanned,
    base_tree: str,
    on_progress: OnProgress | None,
) -> Counter:
    new_trees, wanted = _new_objects(store, scanned, base_tree)
    absent = store.absent_blobs({digest: scanned.places[digest].size for digest in wanted})
    counter = Counter(
        "sending",
        on_progress,
        files_total=len(absent),
        bytes_total=sum(scanned.places[digest].size for digest in absent),
    )
    finder = Finder(directory.resolve())
    try:
        store.put_blobs(
            _new_blobs(finder, scanned, absent),
            lambda size: counter.add(1, size),
            damaged=frozenset(digest for digest, bad in absent.items() if bad),
        )
    except WrongContentError as error:
        raise _ChangedError(scanned.places[error.digest].path) from error
    finally:
        finder.close()
    store.put_trees(new_trees)
    counter.done()
    return counter


def _new_blobs(finder: Finder, scanned: Scanned, absent: Iterable[str]) -> Iterator[NewBlob]:
    for digest in absent:
        place = scanned.places[digest]
        yield NewBlob(digest, place.size, partial(_read, finder, place))


def _read(finder: Finder, place: Place) -> Iterator[bytes]:
    try:
        fd = finder.open(place.path)
    except (OSError, NotRegularError) as error:
        raise _ChangedError(place.path) from error
    try:
        yield from read_chunks(fd)
    except OSError as error:
        raise _ChangedError(place.path) from error
    finally:
        os.close(fd)


def _new_objects(
    store: Store, scanned: Scanned, base_tree: str
) -> tuple[dict[str, bytes], set[str]]:
    """Trees and blobs that the base does not have, found by walking only what differs."""
    new_trees: dict[str, bytes] = {}
    new_blobs: set[str] = set()
    pending = [(base_tree, scanned.tree)]
    while pending:
        old_digest, new_digest = pending.pop()
        if old_digest == new_digest or new_digest in new_trees:
            continue
        data = scanned.made[new_digest]
        new_trees[new_digest] = data
        old = {entry.name: entry for entry in store.tree(old_digest)}
        known = {entry.digest for entry in old.values()}
        for entry in trees.decode(data):
            if entry.is_directory:
                pending.append((_tree_of(old.get(entry.name)), entry.digest))
            elif entry.is_file and entry.digest not in known:
                new_blobs.add(entry.digest)
    return new_trees, new_blobs


def _tree_of(entry: Entry | None) -> str:
    return entry.digest if entry is not None and entry.is_directory else EMPTY_TREE


def _result(
    revision: str,
    scanned: Scanned,
    sent: Counter | None,
    head: Literal["moved", "conflict", "unchanged"],
) -> Pushed:
    return Pushed(
        revision=revision,
        tree=scanned.tree,
        files=scanned.files,
        bytes=scanned.bytes,
        files_sent=sent.files if sent else 0,
        bytes_sent=sent.bytes if sent else 0,
        head=head,
        skipped=tuple(scanned.skipped),
    )

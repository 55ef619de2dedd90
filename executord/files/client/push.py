"""A directory into the store, for a client: scan, send what is missing, move the project's head.

Any user who may write to the store can do it; nothing is chowned and no cache of the node is used.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from executord.core.run import Head
from executord.files.cache.blobs import WrongContentError
from executord.files.client.new_objects import NewObjects, Place
from executord.files.client.scan import Scanned, scan
from executord.files.client.spill import SpillError
from executord.files.client.statcache import StatCache
from executord.files.model import revisions
from executord.files.model.trees import EMPTY_TREE
from executord.files.progress import Counter
from executord.files.store.landing import Arrival, Landed, land
from executord.files.store.pack_writer import SMALL_BYTES
from executord.files.store.store import NewBlob, Store, check_project
from executord.files.system.directories import Finder, MovedError, NotRegularError, read_chunks
from executord.ports import OnProgress, Revision

_TRIES = 3
_CHUNK_FILES = 32_768
_ONE_READ_BYTES = 1 << 20


class PushError(ValueError):
    """The directory cannot be pushed as it is; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """`files` and `bytes` are of the whole directory, the `sent` ones of what the store lacked.

    `revision` is the directory as it is. `head` says what became of it, if somebody else moved the
    project's head meanwhile: "merged" into `head_revision`, where both sides changed different
    paths; else "conflict", and the project does not point to it. `conflicts` names the first paths
    of `conflict_count`. "unchanged": the head has these files already, and `revision` is the head.
    `skipped` names what cannot be stored.
    """

    revision: str
    tree: str
    files: int
    bytes: int
    files_sent: int
    bytes_sent: int
    head: Head
    head_revision: str = ""
    conflicts: tuple[str, ...] = ()
    conflict_count: int = 0
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
    try:
        return _push(
            store,
            directory,
            project,
            cache=cache,
            author=author,
            message=message,
            on_progress=on_progress,
        )
    except SpillError as error:
        raise PushError(
            f"What is there in {directory} cannot be put aside in {cache.home}: {error}."
        ) from error


def _push(
    store: Store,
    directory: Path,
    project: str,
    *,
    cache: StatCache,
    author: str,
    message: str,
    on_progress: OnProgress | None,
) -> Pushed:
    for _ in range(_TRIES):
        base = store.head(project)
        base_tree = store.revision(base).tree if base else EMPTY_TREE
        scanned = _scan(directory, cache, base_tree, on_progress)
        if base and scanned.tree == base_tree:
            cache.save()
            return _result(base, scanned, None, Landed("unchanged", base))
        afresh = store.is_scattered(base_tree, scanned.bytes) if base else False
        if afresh and scanned.without:
            scanned = _scan(directory, cache, "", on_progress)
        try:
            sent = _send(store, directory, scanned, "" if afresh else base_tree, on_progress)
        except _ChangedError as error:
            cache.forget(error.path)
            cache.keep()
            changed = error.path
            continue
        cache.save()
        revision = Revision(
            tree=scanned.tree, parent=base, author=author, message=message, time=time.time()
        )
        digest, data = revisions.encode(revision)
        store.put_revision(digest, data, alone=afresh)
        landed = land(store, store, project, Arrival(digest, revision, (base,)))
        return _result(digest, scanned, sent, landed)
    raise PushError(f"{directory}/{changed} keeps changing while it is being pushed.")


class _ChangedError(Exception):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def _scan(
    directory: Path, cache: StatCache, base_tree: str, on_progress: OnProgress | None
) -> Scanned:
    counter = Counter("scanning", on_progress)
    try:
        scanned = scan(directory, cache, counter.add, without=base_tree)
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
    """What the base lacks; without one everything, also what the store has in older packs."""
    counter = Counter("sending", on_progress)
    finder = Finder(directory.resolve())
    new = NewObjects(store, scanned, base_tree or EMPTY_TREE)
    again = not base_tree
    try:
        for places in _by_the_chunk(new.places()):
            _send_files(store, finder, places, counter, again=again)
    finally:
        finder.close()
    store.put_trees(scanned.made.only(new.trees), again=again)
    counter.done()
    return counter


def _send_files(
    store: Store, finder: Finder, places: Mapping[str, Place], counter: Counter, *, again: bool
) -> None:
    absent = store.absent_blobs({digest: place.size for digest, place in places.items()})
    if again:
        small = (digest for digest, place in places.items() if place.size <= SMALL_BYTES)
        absent = dict.fromkeys(small, False) | absent
    wanted = [digest for digest in places if digest in absent]
    counter.expect_more(len(wanted), sum(places[digest].size for digest in wanted))
    try:
        store.put_blobs(
            (
                NewBlob(digest, places[digest].size, partial(_read, finder, places[digest]))
                for digest in wanted
            ),
            lambda size: counter.add(1, size),
            damaged=frozenset(digest for digest, bad in absent.items() if bad),
        )
    except WrongContentError as error:
        raise _ChangedError(places[error.digest].path) from error


def _by_the_chunk(places: Iterable[tuple[str, Place]]) -> Iterator[Mapping[str, Place]]:
    chunk: dict[str, Place] = {}
    for digest, place in places:
        chunk[digest] = place
        if len(chunk) >= _CHUNK_FILES:
            yield chunk
            chunk = {}
    if chunk:
        yield chunk


def _read(finder: Finder, place: Place) -> Iterator[bytes]:
    try:
        fd = finder.open(place.path)
    except (OSError, NotRegularError) as error:
        raise _ChangedError(place.path) from error
    try:
        if place.size < _ONE_READ_BYTES:
            yield os.read(fd, place.size + 1)  # one too many where it has grown
        else:
            yield from read_chunks(fd)
    except OSError as error:
        raise _ChangedError(place.path) from error
    finally:
        os.close(fd)


def _result(
    revision: str,
    scanned: Scanned,
    sent: Counter | None,
    landed: Landed,
) -> Pushed:
    return Pushed(
        revision=revision,
        tree=scanned.tree,
        files=scanned.files,
        bytes=scanned.bytes,
        files_sent=sent.files if sent else 0,
        bytes_sent=sent.bytes if sent else 0,
        head=landed.head,
        head_revision=landed.head_revision,
        conflicts=landed.conflicts,
        conflict_count=landed.conflict_count,
        skipped=tuple(scanned.skipped),
    )

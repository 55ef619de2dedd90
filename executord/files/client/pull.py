"""From the store into a person's directory, and the difference of two revisions, for a client."""

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from executord.files.model import closure
from executord.files.model.closure import Closure, key_of
from executord.files.model.diff import diff
from executord.files.model.trees import Entry
from executord.files.progress import Counter
from executord.files.store.pack_writer import SMALL_BYTES
from executord.files.store.store import Store
from executord.files.system import disk
from executord.files.system.directories import Cursor, remove_tree
from executord.files.system.parallel import side_by_side
from executord.ports import FileChange, OnProgress


class PullError(ValueError):
    """The files cannot be put there; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    revision: str
    tree: str
    files: int
    bytes: int


def pull_revision(
    store: Store,
    revision_or_prefix: str,
    directory: Path,
    *,
    on_progress: OnProgress | None = None,
) -> Pulled:
    """Into a directory that is empty, or not there yet; it appears with all files or not at all.

    Takes a digest, the beginning of one, or a project. Raises PullError, FaultError of the store
    (REVISION_NOT_FOUND, FILES_CORRUPT, …). Blocks.
    """
    target = directory.absolute()
    if target.is_symlink() or (target.exists() and not _is_empty(target)):
        raise PullError(f"{directory} is there already and not empty: name another directory.")
    revision = store.resolve(revision_or_prefix)
    tree = store.revision(revision).tree
    store.learn(tree)
    wanted = closure.load(tree, store.trees)
    counter = Counter("pulling", on_progress, files_total=wanted.files, bytes_total=wanted.bytes)
    aside = target.with_name(f".{target.name[:100]}.pull-{disk.unique_name()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        _Writer(store, wanted, counter).write(aside)
        aside.rename(target)
    except OSError as error:
        raise PullError(f"{directory} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            remove_tree(aside)
    counter.done()
    return Pulled(revision=revision, tree=tree, files=wanted.files, bytes=wanted.bytes)


def diff_revisions(store: Store, a: str, b: str) -> list[FileChange]:
    """What `b` has changed since `a`, by path; each given as for `pull_revision`."""
    before, after = (store.revision(store.resolve(text)).tree for text in (a, b))
    for tree in (before, after):
        store.learn(tree)
    return sorted(diff(store, before, after), key=lambda change: change.path)


class _Writer:
    """One directory at a time: its files side by side, then down into its directories."""

    def __init__(self, store: Store, wanted: Closure, counter: Counter) -> None:
        self._store = store
        self._wanted = wanted
        self._counter = counter

    def write(self, target: Path) -> None:
        with Cursor(target) as cursor:
            stack = [self._fill(cursor.fd, self._wanted.root)]
            while stack:
                if not stack[-1]:
                    stack.pop()
                    if stack:
                        cursor.leave()
                    continue
                entry = stack[-1].pop()
                os.mkdir(entry.name, dir_fd=cursor.fd)
                cursor.enter(entry.name)
                stack.append(self._fill(cursor.fd, entry.digest))

    def _fill(self, dir_fd: int, tree: str) -> list[Entry]:
        files, directories = [], []
        for entry in self._wanted.trees[tree]:
            if entry.is_directory:
                directories.append(entry)
            elif entry.is_file:
                files.append(entry)
            else:
                os.symlink(entry.target, entry.name, dir_fd=dir_fd)
                self._counter.add(1, 0)
        self._write_small(dir_fd, [entry for entry in files if entry.size <= SMALL_BYTES])
        for _ in side_by_side(
            self._store.parallelism,
            [entry for entry in files if entry.size > SMALL_BYTES],
            lambda entry: self._write_file(
                dir_fd, entry, self._store.blob(entry.digest, entry.size)
            ),
        ):
            pass
        return directories

    def _write_small(self, dir_fd: int, files: Sequence[Entry]) -> None:
        """Neighbours in the tree are neighbours in a pack: they come with one request."""
        by_digest: dict[str, list[Entry]] = {}
        for entry in files:
            by_digest.setdefault(entry.digest, []).append(entry)
        sizes = {digest: entries[0].size for digest, entries in by_digest.items()}
        for digest, data in self._store.small_blobs(sizes):
            for entry in by_digest[digest]:
                self._write_file(dir_fd, entry, (data,))

    def _write_file(self, dir_fd: int, entry: Entry, chunks: Iterable[bytes]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = 0o777 if key_of(entry).executable else 0o666
        fd = os.open(entry.name, flags, mode, dir_fd=dir_fd)
        try:
            disk.write_chunks(fd, chunks)
        finally:
            os.close(fd)
        self._counter.add(1, entry.size)


def _is_empty(path: Path) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            return False
        raise PullError(f"{path} cannot be read: {error.strerror}.") from error

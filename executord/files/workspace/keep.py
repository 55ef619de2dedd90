"""Finishing: what a run changed becomes a revision on top of its base, and the project's head.

Order: blobs, trees, revision, the run's own pointer, the head. Whatever is killed in between, the
same again gives the same revision: everything in it comes from the run and its files, nothing from
the clock.
"""

import contextlib
import os
import stat
import threading
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from executord.core.reasons import Reason
from executord.core.run import Result, Run
from executord.files.cache.blobs import BlobBatch, BlobKey, Blobs, WrongContentError
from executord.files.cache.objects import Trees
from executord.files.faults import CancelledWorkError, disk, fault
from executord.files.model import digests, revisions, trees
from executord.files.model.closure import key_of
from executord.files.model.diff import diff
from executord.files.model.trees import Entry, Tree
from executord.files.progress import Counter
from executord.files.store.store import BadProjectError, NewBlob, Store, check_project
from executord.files.store.transfer import Fetcher
from executord.files.system.directories import Cursor, open_regular, read_chunks, read_small
from executord.files.workspace.changes import Found, Merged, Skip, merge
from executord.ports import FileChange, OnProgress, Revision

DIAGNOSTICS = "dominostats.json"
MAX_DIAGNOSTICS_BYTES = 64 << 10
MAX_FILE_BYTES = 256 << 30
_MAX_ANCESTORS = 10_000
_LIVE_HASH_BYTES = 16 << 20
_COMMIT_FILES = 4096
_COMMIT_BYTES = 512 << 20

Head = Literal["moved", "conflict", "unchanged", "not_kept"]


@dataclass(frozen=True, slots=True)
class Finished:
    result: Result
    files_sent: int
    bytes_sent: int


class Combined:
    """Trees just made, then those of the node and the store."""

    def __init__(self, made: Mapping[str, bytes], fetcher: Fetcher) -> None:
        self._made = made
        self._fetcher = fetcher

    def tree(self, digest: str) -> Tree:
        data = self._made.get(digest)
        return trees.decode(data) if data is not None else self._fetcher.tree(digest)


class Keeper:
    """Blocks; safe in any thread."""

    def __init__(self, *, store: Store, fetcher: Fetcher, blobs: Blobs, local_trees: Trees) -> None:
        self._store = store
        self._fetcher = fetcher
        self._blobs = blobs
        self._trees = local_trees

    def keep(
        self, run: Run, upper: Path, on_progress: OnProgress, cancelled: threading.Event
    ) -> Finished:
        """Raises FaultError, CancelledWorkError."""
        workspace = run.workspace
        if workspace is None:
            return Finished(Result(head="not_kept"), 0, 0)
        intake = _Intake(self._blobs, cancelled, Counter("reading changes", on_progress))
        try:
            with disk(f"read what run {run.id} changed"):
                merged = self._merge(upper, workspace.tree, intake)
                intake.commit()
            diagnostics = _diagnostics(upper, merged)
            return self._store_result(
                run,
                merged=merged,
                intake=intake,
                diagnostics=diagnostics,
                on_progress=on_progress,
                cancelled=cancelled,
            )
        finally:
            intake.close()

    def changes(self, upper: Path, base_tree: str) -> list[FileChange]:
        """The same without storing anything; large files of unchanged size count as changed."""
        with disk("read what the run changed"):
            merged = merge(
                upper,
                base_tree,
                self._fetcher,
                take_file=_look_at,
                read_base=self._read_base,
            )
        source = Combined(merged.made, self._fetcher)
        return sorted(diff(source, base_tree, merged.tree), key=lambda change: change.path)

    def _merge(self, upper: Path, base_tree: str, intake: "_Intake") -> Merged:
        return merge(
            upper, base_tree, self._fetcher, take_file=intake.take, read_base=self._read_base
        )

    def _read_base(self, entry: Entry) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return Path(self._blobs.path(key_of(entry))).read_bytes()
        return b"".join(self._store.blob(entry.digest, entry.size))

    def _store_result(
        self,
        run: Run,
        *,
        merged: Merged,
        intake: "_Intake",
        diagnostics: Mapping[str, object] | None,
        on_progress: OnProgress,
        cancelled: threading.Event,
    ) -> Finished:
        assert run.workspace is not None
        base_tree = run.workspace.tree
        if merged.tree == base_tree:
            unchanged = Result(head="unchanged", skipped=_skipped(merged), diagnostics=diagnostics)
            return Finished(unchanged, 0, 0)
        source = Combined(merged.made, self._fetcher)
        changes = Tally(change.kind for change in diff(source, base_tree, merged.tree))
        sent = self._send_blobs(intake.taken, on_progress, cancelled)
        self._send_trees(merged.made, base_tree)
        revision = self._send_revision(run, merged.tree)
        result = Result(
            revision=revision,
            head=self._move_head(run, revision),
            added=changes["added"],
            changed=changes["changed"],
            deleted=changes["deleted"],
            bytes_sent=sent.bytes,
            skipped=_skipped(merged),
            diagnostics=diagnostics,
        )
        return Finished(result, sent.files, sent.bytes)

    def _send_blobs(
        self,
        taken: Mapping[BlobKey, int],
        on_progress: OnProgress,
        cancelled: threading.Event,
    ) -> Counter:
        by_digest = {key.digest: key for key in taken}
        absent = self._store.absent_blobs({key.digest: size for key, size in taken.items()})
        counter = Counter(
            "sending changes",
            on_progress,
            files_total=len(absent),
            bytes_total=sum(taken[by_digest[digest]] for digest in absent),
        )

        def new_blobs() -> Iterable[NewBlob]:
            for digest in absent:
                if cancelled.is_set():
                    raise CancelledWorkError
                key = by_digest[digest]
                yield NewBlob(digest, taken[key], partial(self._blob_chunks, key, cancelled))

        damaged = frozenset(digest for digest, bad in absent.items() if bad)
        try:
            self._store.put_blobs(new_blobs(), lambda size: counter.add(1, size), damaged=damaged)
        except WrongContentError as error:
            raise fault(
                Reason.FILES_CORRUPT, f"The node's own copy of a changed file is damaged: {error}."
            ) from error
        counter.done()
        return counter

    def _blob_chunks(self, key: BlobKey, cancelled: threading.Event) -> Iterable[bytes]:
        with (
            disk(f"read the changed file {key.digest}"),
            open(  # noqa: PTH123 - hot
                self._blobs.path(key), "rb", buffering=0
            ) as file,
        ):
            yield from _until(cancelled, read_chunks(file.fileno()))

    def _send_trees(self, made: Mapping[str, bytes], base_tree: str) -> None:
        """Children before parents does not matter: nothing names them before the revision."""
        new = {digest: data for digest, data in made.items() if digest != base_tree}
        self._store.put_trees(new)
        with disk("keep trees"):
            self._trees.put(new)

    def _send_revision(self, run: Run, tree: str) -> str:
        assert run.workspace is not None
        digest, data = revisions.encode(
            Revision(
                tree=tree,
                parent=run.workspace.base_revision,
                author=run.assignment.started_by,
                message=_message(run),
                time=_time_of(run),
                run=run.id,
            )
        )
        self._store.put_revision(digest, data)
        return digest

    def _move_head(self, run: Run, revision: str) -> Head:
        assert run.workspace is not None
        project = run.assignment.project
        self._store.set_run_revision(project, run.id, revision)
        if not project:
            return "unchanged"
        if self._store.move_head(project, run.workspace.base_revision, revision):
            return "moved"
        # Killed after the move, and somebody built upon it: then it was moved all the same.
        return "moved" if self._is_ancestor(revision, self._store.head(project)) else "conflict"

    def _is_ancestor(self, wanted: str, revision: str) -> bool:
        for _ in range(_MAX_ANCESTORS):
            if not revision or revision == wanted:
                return revision == wanted
            revision = self._fetcher.revision(revision).parent
        return False


def check_can_keep(run: Run) -> None:
    """Raises FaultError before anything is done for a run that cannot be kept."""
    if not run.assignment.project:
        return
    try:
        check_project(run.assignment.project)
    except BadProjectError as error:
        raise fault(Reason.INTERNAL, str(error)) from error


def _until(cancelled: threading.Event, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """One file may be huge, or pretend to be: a stop is heard in the middle of it."""
    for chunk in chunks:
        if cancelled.is_set():
            raise CancelledWorkError
        yield chunk


class _Intake:
    """Takes changed files into the node's blobs, where they stay the same while they are sent."""

    def __init__(self, blobs: Blobs, cancelled: threading.Event, counter: Counter) -> None:
        self._blobs = blobs
        self._cancelled = cancelled
        self._counter = counter
        self._batch: BlobBatch | None = None
        self._pins = contextlib.ExitStack()
        self.taken: dict[BlobKey, int] = {}

    def take(self, found: Found) -> tuple[str, int]:
        if self._cancelled.is_set():
            raise CancelledWorkError
        if found.size > MAX_FILE_BYTES:
            raise Skip(f"larger than {MAX_FILE_BYTES} bytes")
        fd = open_regular(found.dir_fd, found.name)
        try:
            if found.base is not None and found.base.size == found.size:
                same = digests.of_chunks(_until(self._cancelled, read_chunks(fd)))
                if same == found.base.digest:
                    self._counter.add(1, found.size)
                    return same, found.size  # the store has it, whatever its mode is now
                os.lseek(fd, 0, os.SEEK_SET)
            return self._ingest(fd, found)
        finally:
            os.close(fd)

    def _ingest(self, fd: int, found: Found) -> tuple[str, int]:
        batch = self._batch = self._batch or self._blobs.batch()
        key, size = batch.ingest(
            _until(self._cancelled, read_chunks(fd)), executable=found.executable
        )
        self._pins.enter_context(self._blobs.pinned((key,)))
        self.taken[key] = size
        self._counter.add(1, size)
        if len(batch) >= _COMMIT_FILES or batch.bytes >= _COMMIT_BYTES:
            self.commit()
        return key.digest, size

    def commit(self) -> None:
        if self._batch is not None:
            self._batch.commit()
            self._batch = None
        self._counter.done()

    def close(self) -> None:
        if self._batch is not None:
            self._batch.abandon()
        self._pins.close()


def _look_at(found: Found) -> tuple[str, int]:
    """For a live view: the true digest where that is cheap, else one that differs."""
    base = found.base
    if base is not None and base.size == found.size and found.size <= _LIVE_HASH_BYTES:
        fd = open_regular(found.dir_fd, found.name)
        try:
            return digests.of_chunks(read_chunks(fd)), found.size
        finally:
            os.close(fd)
    facts = found.facts
    stand_in = f"{facts.st_dev} {facts.st_ino} {facts.st_mtime_ns} {facts.st_size}"
    return digests.of_bytes(stand_in.encode()), found.size


def _diagnostics(upper: Path, merged: Merged) -> Mapping[str, object] | None:
    """Only what this run wrote itself; anything but a JSON object is left to the file's reader."""
    with Cursor(upper) as cursor:
        data = read_small(cursor.fd, DIAGNOSTICS, MAX_DIAGNOSTICS_BYTES)
        if data is None:
            if _is_regular(cursor.fd, DIAGNOSTICS):
                merged.skip(DIAGNOSTICS, f"not read, larger than {MAX_DIAGNOSTICS_BYTES} bytes")
            return None
    try:
        value = msgspec.json.decode(data, type=dict[str, object])
        msgspec.json.encode(value)
    except (msgspec.MsgspecError, RecursionError, OverflowError, UnicodeError, ValueError):
        merged.skip(DIAGNOSTICS, "not read, it is no JSON object")
        return None
    return value


def _is_regular(dir_fd: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _skipped(merged: Merged) -> tuple[str, ...]:
    more = merged.skipped_count - len(merged.skipped)
    if not more:
        return tuple(merged.skipped)
    return (*merged.skipped[:-1], f"… and {more + 1} more")


def _message(run: Run) -> str:
    number = f" {run.assignment.number}" if run.assignment.number else ""
    return f"Run{number} ({run.id})"


def _time_of(run: Run) -> float:
    """When the command ended; never the clock, since the same has to come out every time."""
    seen = run.evidence
    for moment in (seen.finished_at, seen.started_at) if seen else ():
        if moment is not None:
            return moment
    return run.accepted_at

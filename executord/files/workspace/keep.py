"""Finishing: what a run changed becomes a revision on top of its base, and the project's head.

Order: blobs, trees, revision, the run's own pointer, the head. Whatever is killed in between, the
same again gives the same revision: everything in it comes from the run and its files, nothing from
the clock. What a run stores while it goes on takes the same way; its next revision builds on that.
"""

import contextlib
import threading
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from executord.core.reasons import Reason
from executord.core.run import Result, Run
from executord.files.cache.blobs import Blobs
from executord.files.cache.objects import Trees
from executord.files.faults import disk, fault
from executord.files.model import revisions
from executord.files.model.closure import key_of
from executord.files.model.diff import diff
from executord.files.model.trees import Entry, TreeSource
from executord.files.store.landing import Arrival, Landed, land
from executord.files.store.patience import Patience, PatientTrees
from executord.files.store.store import BadProjectError, Store, check_project
from executord.files.store.transfer import Fetcher
from executord.files.workspace.changed import Changed, UpperDirectory
from executord.files.workspace.changes import Merged
from executord.files.workspace.diagnostics import read_diagnostics
from executord.files.workspace.glance import Combined, look_at
from executord.files.workspace.intake import DamagedBlobError, Intake, damaged_fault
from executord.files.workspace.live_copy import LiveCopy, copy_changes
from executord.files.workspace.origin import Origin, ask_origin, read_origin, write_origin
from executord.files.workspace.upload_journal import UploadJournal
from executord.ports import FileChange, OnProgress, Revision

log = structlog.get_logger(__name__)

_JOURNAL = "uploads-v1"


@dataclass(frozen=True, slots=True)
class Finished:
    result: Result
    files_sent: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a run changed, read and on this node."""

    merged: Merged
    diagnostics: Mapping[str, object] | None


@dataclass(slots=True)
class TakenLive:
    """What a run has changed so far: a copy to be read, or, where its directory holds all files,
    already read and on this node, held by `intake` until `close`. `way`: "reflink", "copy", "read".
    """

    way: str
    copied: LiveCopy | None = None
    taken: _Taken | None = None
    intake: Intake | None = None

    def close(self) -> None:
        if self.intake is not None:
            self.intake.close()


@dataclass(frozen=True, slots=True)
class _Job:
    """One run's way from here to the store. `home` is the run's own directory on the node."""

    run: Run
    home: Path
    patience: Patience
    cancelled: threading.Event
    on_progress: OnProgress


class Keeper:
    """Blocks; safe in any thread. `patience_seconds`: how long a store may give no answer.

    `later` gets what nobody has to wait for: it may do it in another thread.
    """

    def __init__(
        self,
        *,
        store: Store,
        fetcher: Fetcher,
        blobs: Blobs,
        local_trees: Trees,
        patience_seconds: float = 0.0,
        later: Callable[[Callable[[], None]], object] = lambda work: work(),
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._blobs = blobs
        self._trees = local_trees
        self._patience_seconds = patience_seconds
        self._later = later

    # -- the end of a run --------------------------------------------------------------------------

    def keep(
        self,
        run: Run,
        changed: Changed,
        home: Path,
        on_progress: OnProgress,
        cancelled: threading.Event,
    ) -> Finished:
        """Raises FaultError, CancelledWorkError."""
        if run.workspace is None:
            return Finished(Result(head="not_kept"), 0, 0)
        job = self._job(run, home, on_progress, cancelled, patience_seconds=self._patience_seconds)
        try:
            return self._keep(job, changed)
        except DamagedBlobError:
            with disk("forget what was noted of the upload"):
                (home / _JOURNAL).unlink(missing_ok=True)
        try:
            return self._keep(job, changed)
        except DamagedBlobError as error:
            raise damaged_fault(error) from error

    def _keep(self, job: _Job, changed: Changed) -> Finished:
        with contextlib.ExitStack() as stack:
            with disk(f"read what run {job.run.id} changed"):
                journal = stack.enter_context(UploadJournal(job.home / _JOURNAL, self._store.url))
            intake = stack.enter_context(self._intake(job, journal=journal))
            taken = self._take(job, changed, intake)
            revision = Revision(
                tree=taken.merged.tree,
                author=job.run.assignment.started_by,
                message=_message(job.run),
                time=_time_of(job.run),
                run=job.run.id,
            )
            return self._store_result(job, taken, intake, revision)

    # -- while it goes on --------------------------------------------------------------------------

    def take_live(
        self,
        run: Run,
        changed: Changed,
        aside: Path,
        on_progress: OnProgress,
        cancelled: threading.Event,
    ) -> TakenLive:
        """What a run has changed so far, as it is now; its processes have to stand still.

        `aside` does not exist yet, on the filesystem of the cache; it is the caller's to remove.
        Raises FaultError, CancelledWorkError.
        """
        assert run.workspace is not None
        if isinstance(changed, UpperDirectory):
            with disk(f"copy what run {run.id} changed"):
                copied = copy_changes(changed, aside, cancelled)
            return TakenLive(copied.way, copied=copied)
        job = self._job(run, aside, on_progress, cancelled)
        intake = self._intake(job, hold=True)
        try:
            return TakenLive("read", taken=self._take(job, changed, intake), intake=intake)
        except BaseException:
            intake.close()
            raise

    def store_live(
        self,
        run: Run,
        live: TakenLive,
        home: Path,
        *,
        at: float,
        on_progress: OnProgress,
        cancelled: threading.Event,
    ) -> Finished:
        """As at the end, marked as taken in the middle of the run at that time (Unix seconds).

        A store that is away is not waited for: somebody is there to ask again.
        """
        job = self._job(run, home, on_progress, cancelled)
        with contextlib.ExitStack() as stack:
            taken, intake = live.taken, live.intake
            if taken is None or intake is None:
                assert live.copied is not None
                intake = stack.enter_context(self._intake(job))
                taken = self._take(job, live.copied.changed, intake)
                for path, why in live.copied.skipped:
                    taken.merged.skip(path, why)
            intake.send()
            revision = Revision(
                tree=taken.merged.tree,
                author=run.assignment.started_by,
                message=f"{_message(run)}, while it runs",
                time=at,
                run=run.id,
                mid_run=True,
            )
            return self._store_result(job, taken, intake, revision)

    def changes(self, changed: Changed, base_tree: str) -> list[FileChange]:
        """The same without storing anything; large files of unchanged size count as changed."""
        with disk("read what the run changed"):
            merged = changed.merge(
                base_tree, self._fetcher, take_file=look_at, read_base=self._read_base
            )
        source = Combined(merged.made, self._fetcher)
        return sorted(diff(source, base_tree, merged.tree), key=lambda change: change.path)

    # -- steps -------------------------------------------------------------------------------------

    def _job(
        self,
        run: Run,
        home: Path,
        on_progress: OnProgress,
        cancelled: threading.Event,
        *,
        patience_seconds: float = 0.0,
    ) -> _Job:
        patience = Patience(patience_seconds, cancelled, on_progress)
        return _Job(run, home, patience, cancelled, on_progress)

    def _intake(
        self, job: _Job, *, journal: UploadJournal | None = None, hold: bool = False
    ) -> Intake:
        return Intake(
            blobs=self._blobs,
            store=self._store,
            patience=job.patience,
            cancelled=job.cancelled,
            on_progress=job.on_progress,
            journal=journal,
            hold=hold,
        )

    def _take(self, job: _Job, changed: Changed, intake: Intake) -> _Taken:
        assert job.run.workspace is not None
        base_tree = job.run.workspace.tree
        source = PatientTrees(self._fetcher, job.patience)
        with disk(f"read what run {job.run.id} changed"):
            merged = changed.merge(
                base_tree,
                source,
                take_file=intake.take,
                read_base=lambda entry: job.patience.ask(lambda: self._read_base(entry)),
            )
            intake.finish()
            return _Taken(merged, read_diagnostics(changed, merged, base_tree, source))

    def _read_base(self, entry: Entry) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return Path(self._blobs.path(key_of(entry))).read_bytes()
        return b"".join(self._store.blob(entry.digest, entry.size))

    def _store_result(self, job: _Job, taken: _Taken, intake: Intake, draft: Revision) -> Finished:
        workspace = job.run.workspace
        assert workspace is not None
        merged = taken.merged
        with disk(f"look for what run {job.run.id} has stored"):
            origin = read_origin(job.home, workspace)
        if origin is None:
            origin = job.patience.ask(lambda: ask_origin(self._store, job.run, workspace))
        skipped = _skipped(merged)
        if merged.tree == origin.tree and not origin.stored:
            self._settle(intake, {})
            result = Result(head="unchanged", skipped=skipped, diagnostics=taken.diagnostics)
            return Finished(result, 0, 0)
        source = Combined(merged.made, PatientTrees(self._fetcher, job.patience))
        changes = Tally(change.kind for change in diff(source, workspace.tree, merged.tree))
        digest, landed = self._arrive(job, merged, source, origin, draft)
        self._settle(intake, merged.made)
        result = Result(
            revision=digest,
            head=landed.head,
            head_revision=landed.head_revision if landed.head == "merged" else "",
            conflicts=landed.conflicts,
            conflict_count=landed.conflict_count,
            added=changes["added"],
            changed=changes["changed"],
            deleted=changes["deleted"],
            bytes_sent=intake.bytes_sent,
            skipped=skipped,
            diagnostics=taken.diagnostics,
        )
        return Finished(result, intake.files_sent, intake.bytes_sent)

    def _settle(self, intake: Intake, made: Mapping[str, bytes]) -> None:
        """The node's own copies of what the store has now; it can do without."""
        late = intake.late()

        def settle() -> None:
            try:
                if late is not None:
                    late.commit()
                self._trees.put(made)
            except OSError as error:
                log.warning("cache.not_settled", detail=str(error))
                if late is not None:
                    with contextlib.suppress(OSError):
                        late.abandon()

        self._later(settle)

    def _arrive(
        self, job: _Job, merged: Merged, source: TreeSource, origin: Origin, draft: Revision
    ) -> tuple[str, Landed]:
        """Trees, revision, the run's own pointer, the head."""
        if merged.tree == origin.tree:  # stored already while it went on; it may not have landed
            digest, line = origin.line[0], origin.line[1:]
            revision = job.patience.ask(lambda: self._store.revision(digest))
            line = line or (revision.parent,)
        else:
            revision, line = _on(draft, origin), origin.line
            digest = self._send_revision(job, merged, revision)
            origin = origin.then(digest, merged.tree)
            if revision.mid_run:
                with disk("note what was stored"):
                    write_origin(job.home, origin)
        project, run_id = job.run.assignment.project, job.run.id
        job.patience.ask(lambda: self._store.set_run_revision(project, run_id, digest))
        if not project:
            return digest, Landed("unchanged")
        landed = land(
            self._store,
            source,
            project,
            Arrival(digest, revision, line),
            cancelled=job.cancelled,
            patience=job.patience,
        )
        if revision.mid_run and landed.head != "conflict":
            with disk("note what was stored"):
                write_origin(job.home, origin.landed())
        return digest, landed

    def _send_revision(self, job: _Job, merged: Merged, revision: Revision) -> str:
        """Children before parents does not matter: nothing names them before the revision."""
        assert job.run.workspace is not None
        new = {d: data for d, data in merged.made.items() if d != job.run.workspace.tree}
        job.patience.ask(lambda: self._store.put_trees(new))
        digest, data = revisions.encode(revision)
        job.patience.ask(lambda: self._store.put_revision(digest, data))
        return digest


def check_can_keep(run: Run) -> None:
    """Raises FaultError before anything is done for a run that cannot be kept."""
    if not run.assignment.project:
        return
    try:
        check_project(run.assignment.project)
    except BadProjectError as error:
        raise fault(Reason.INTERNAL, str(error)) from error


def _on(draft: Revision, origin: Origin) -> Revision:
    return Revision(
        tree=draft.tree,
        parent=origin.parent,
        author=draft.author,
        message=draft.message,
        time=draft.time,
        run=draft.run,
        mid_run=draft.mid_run,
    )


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

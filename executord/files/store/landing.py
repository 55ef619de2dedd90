"""A revision finds its place in its project: the head moves to it, or to both sides merged, or not.

Nothing is ever overwritten. A head moves by compare-and-swap only; where somebody else has moved it
since the revision's base, the two sides are merged if they changed different paths. Else the head
stays, and the revision can be reached under its run. All of it may be repeated: what has landed is
recognised by walking the head's ancestry, and nothing here depends on the clock.
"""

import random
import threading
from dataclasses import dataclass

from executord.core.reasons import Reason
from executord.core.run import Head
from executord.files.faults import CancelledWorkError, fault
from executord.files.model import revisions
from executord.files.model.three_way import ThreeWay, merge_trees
from executord.files.model.trees import EMPTY_TREE, TreeSource
from executord.files.store.patience import NEVER, Patience
from executord.files.store.store import Store
from executord.ports import Revision

_MAX_ANCESTORS = 10_000
_MAX_TRIES = 200
_LONGEST_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Landed:
    """`head_revision` is where the head points because of this: "" in a conflict."""

    head: Head
    head_revision: str = ""
    conflicts: tuple[str, ...] = ()
    conflict_count: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A revision that is in the store with all it needs. `line` are its own ancestors, newest
    first, down to where it began ("" for a start without files), itself not among them.
    """

    digest: str
    revision: Revision
    line: tuple[str, ...]


def land(
    store: Store,
    source: TreeSource,
    project: str,
    arrival: Arrival,
    *,
    cancelled: threading.Event = NEVER,
    patience: Patience | None = None,
) -> Landed:
    """Raises FaultError, CancelledWorkError. Blocks.

    `source` gives trees; those of a merge are written to the store only.
    """
    landing = _Landing(store, source, project, arrival, patience or Patience(0.0, cancelled))
    for tried in range(_MAX_TRIES):
        if cancelled.is_set():
            raise CancelledWorkError
        landed = landing.once()
        if landed is not None:
            return landed
        pause = min(_LONGEST_PAUSE_SECONDS, 0.002 * 2 ** min(tried, 10))
        cancelled.wait(random.uniform(0, pause))  # noqa: S311 - to spread writers, not to hide
    raise fault(
        Reason.STORE_UNAVAILABLE,
        f"The head of {project} moves too quickly: {_MAX_TRIES} tries to add to it were overtaken.",
    )


class _Landing:
    def __init__(
        self,
        store: Store,
        source: TreeSource,
        project: str,
        arrival: Arrival,
        patience: Patience,
    ) -> None:
        self._store = store
        self._source = source
        self._project = project
        self._arrival = arrival
        self._patience = patience

    def once(self) -> Landed | None:
        """None where somebody else moved the head in between."""
        own = self._arrival
        head = self._patience.ask(lambda: self._store.head(self._project))
        if head in ("", own.line[0] if own.line else ""):
            moved = self._swap(head, own.digest)
            return Landed("moved", own.digest) if moved else None
        meeting = self._patience.ask(lambda: self._meeting(head))
        if meeting is None:
            return Landed("conflict")
        met, joint = meeting
        if met == own.digest:
            return Landed("merged", joint) if joint else Landed("moved", own.digest)
        return self._merge(head, met)

    def _swap(self, head: str, new: str) -> bool:
        return self._patience.ask(lambda: self._store.move_head(self._project, head, new))

    def _meeting(self, head: str) -> tuple[str, str] | None:
        """The newest of our own line in the head's ancestry, with the merge that took it there (""
        where it is an ancestor itself). None where there is none.
        """
        ours = {self._arrival.digest, *self._arrival.line}
        revision = head
        for _ in range(_MAX_ANCESTORS):
            if revision in ours:
                return revision, ""
            if not revision:
                return None
            found = self._store.revision(revision)
            if found.merged in ours and found.merged:
                return found.merged, revision
            revision = found.parent
        return None

    def _merge(self, head: str, met: str) -> Landed | None:
        own = self._arrival.revision
        theirs = self._patience.ask(lambda: self._tree_of(head))
        base = self._patience.ask(lambda: self._tree_of(met))
        joined = self._patience.ask(lambda: merge_trees(base, theirs, own.tree, self._source))
        if not joined.tree:
            return Landed(
                "conflict", "", tuple(map(_printable, joined.conflicts)), joined.conflict_count
            )
        digest, data = revisions.encode(
            Revision(
                tree=joined.tree,
                parent=head,
                author=own.author,
                message=own.message,
                time=own.time,
                run=own.run,
                merged=self._arrival.digest,
                mid_run=own.mid_run,
            )
        )
        self._patience.ask(lambda: self._put(joined, digest, data))
        return Landed("merged", digest) if self._swap(head, digest) else None

    def _put(self, joined: ThreeWay, digest: str, data: bytes) -> None:
        self._store.put_trees(joined.made)
        self._store.put_revision(digest, data)

    def _tree_of(self, digest: str) -> str:
        return self._store.revision(digest).tree if digest else EMPTY_TREE


def _printable(path: str) -> str:
    text = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return text if len(text) <= 300 else f"{text[:150]}…{text[-150:]}"

"""The store that all nodes and clients share: blobs, trees, revisions, and each project's head.

    blobs/aa/<hex>  trees/aa/<hex>  revisions/aa/<hex>
    projects/<project>/head                       the digest of its newest revision
    projects/<project>/runs/<run>                 the digest of the revision that a run left
    runs/<run>                                    the same for runs without a project

Objects are named by their content, checked whenever they are read, and never changed. A head moves
by compare-and-swap. Every method blocks, may be called from any thread, and raises FaultError:
STORE_UNAVAILABLE, STORE_DENIED, FILES_CORRUPT, REVISION_NOT_FOUND.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from executord.core.reasons import Reason
from executord.files.cache.blobs import WrongContentError, verified
from executord.files.faults import corrupt, fault
from executord.files.model import digests, revisions, trees
from executord.files.model.trees import Tree
from executord.files.store.bucket import Bucket, MissingObjectError, Upload, open_bucket
from executord.files.system.parallel import side_by_side
from executord.ports import Revision

MAX_PROJECT = 128
_PROJECT = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")
_RESERVED = {"head", "runs"}  # beside a project of one name alone
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_HEX = re.compile(r"[0-9a-f]{6,64}")
_MAX_HEAD_BYTES = 256
_SHARD = 2


class BadProjectError(ValueError):
    """A text that cannot name a project."""


def check_project(name: str) -> None:
    """`name` or `owner/name`. Raises BadProjectError."""
    parts = name.split("/")
    reserved = len(parts) > 1 and parts[1] in _RESERVED
    bad = not _PROJECT.fullmatch(name) or not {".", ".."}.isdisjoint(parts)
    if len(name) > MAX_PROJECT or bad or reserved:
        raise BadProjectError(
            f"{name[:140]!r} cannot be a project: letters, digits, '.', '_', '-', with at most one "
            f"'/', {MAX_PROJECT} characters"
        )


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob to be sent. `open` gives its bytes afresh each time."""

    digest: str
    size: int
    open: Callable[[], Iterable[bytes]]


class Store:
    def __init__(self, url: str, bucket: Bucket) -> None:
        self.url = url
        self._bucket = bucket

    @classmethod
    def open(cls, url: str, options: Mapping[str, str], *, create: bool = False) -> "Store":
        """`create` makes the directory of a file:// store where it is missing."""
        return cls(url, open_bucket(url, options, create=create))

    @property
    def parallelism(self) -> int:
        return self._bucket.parallelism

    # -- reading -----------------------------------------------------------------------------------

    def revision(self, digest: str) -> Revision:
        return revisions.decode(self.revision_bytes(digest))

    def revision_bytes(self, digest: str) -> bytes:
        try:
            data = self._object("revisions", digest, revisions.MAX_REVISION_BYTES)
        except MissingObjectError as error:
            raise fault(
                Reason.REVISION_NOT_FOUND, f"The store {self.url} has no revision {digest}."
            ) from error
        try:
            revisions.decode(data)
        except revisions.BadRevisionError as error:
            raise corrupt(f"The revision {digest} in {self.url} is damaged: {error}.") from error
        return data

    def tree_bytes(self, digest: str) -> bytes:
        """Bytes that hash to the digest; whether they are a tree is for who decodes them."""
        try:
            return self._object("trees", digest, trees.MAX_TREE_BYTES)
        except MissingObjectError as error:
            raise corrupt(f"The store {self.url} lacks the tree {digest}.") from error

    def tree(self, digest: str) -> Tree:
        if digest == trees.EMPTY_TREE:
            return ()
        return decoded(digest, self.tree_bytes(digest))

    def blob(self, digest: str, size: int) -> Iterator[bytes]:
        """Its bytes, checked; the fault may come with the last piece only."""
        try:
            yield from verified(self._bucket.read(_key("blobs", digest)), digest, size)
        except MissingObjectError as error:
            raise corrupt(f"The store {self.url} lacks the file content {digest}.") from error
        except WrongContentError as error:
            raise corrupt(f"A file in the store {self.url} is damaged: {error}.") from error

    def resolve(self, text: str) -> str:
        """A revision's digest from a digest, its first 6 or more hex digits, or a project's name
        (its head). Raises REVISION_NOT_FOUND, also where several begin so.
        """
        if digests.is_digest(text):
            return text
        start = text.removeprefix(digests.PREFIX)
        if _HEX.fullmatch(start):
            found = [
                name
                for name in self._bucket.keys(f"revisions/{start[:_SHARD]}")
                if name.startswith(start)
            ]
            if len(found) == 1:
                return digests.from_hex(found[0])
            if found:
                raise fault(Reason.REVISION_NOT_FOUND, f"{len(found)} revisions begin with {text}.")
        try:
            head = self.head(text)
        except BadProjectError:
            head = ""
        if head:
            return head
        raise fault(
            Reason.REVISION_NOT_FOUND, f"The store {self.url} has no revision or project {text!r}."
        )

    # -- heads -------------------------------------------------------------------------------------

    def head(self, project: str) -> str:
        """The project's newest revision, "" where there is none. Raises BadProjectError."""
        return self._pointer(_head_key(project))

    def move_head(self, project: str, expected: str, new: str) -> bool:
        """From `expected` ("" for none) to `new`; False where somebody else was first."""
        digests.hex_of(new)
        return self._bucket.swap(_head_key(project), expected.encode(), new.encode())

    def run_revision(self, project: str, run: str) -> str:
        """What the run has left, "" where nothing."""
        return self._pointer(_run_key(project, run))

    def set_run_revision(self, project: str, run: str, revision: str) -> None:
        key = _run_key(project, run)
        self._bucket.swap(key, self._pointer(key).encode(), revision.encode())

    # -- writing -----------------------------------------------------------------------------------

    def absent_blobs(self, sizes: Mapping[str, int]) -> dict[str, bool]:
        """Those that have to be sent; True where a damaged one (of another size) is in the way."""
        absent = {}
        for digest, there in self._sizes("blobs", list(sizes)):
            if there != sizes[digest]:
                absent[digest] = there is not None
        return absent

    def put_blobs(
        self,
        blobs: Iterable[NewBlob],
        on_sent: Callable[[int], None],
        *,
        damaged: frozenset[str] = frozenset(),
    ) -> None:
        """Complete and durable on return. What is sent is checked: WrongContentError where `open`
        gives other bytes than promised. `on_sent` is told the bytes of each.
        """
        self._bucket.put_many(
            (
                Upload(
                    key=_key("blobs", blob.digest),
                    size=blob.size,
                    open=_checked(blob),
                    replace=blob.digest in damaged,
                )
                for blob in blobs
            ),
            lambda upload: on_sent(upload.size),
        )

    def put_trees(self, objects: Mapping[str, bytes]) -> None:
        """Complete and durable on return."""
        self._put("trees", objects)

    def put_revision(self, digest: str, data: bytes) -> None:
        self._put("revisions", {digest: data})

    # -- parts -------------------------------------------------------------------------------------

    def _put(self, folder: str, objects: Mapping[str, bytes]) -> None:
        uploads = [
            Upload(
                key=_key(folder, digest),
                size=len(objects[digest]),
                open=_given(objects[digest]),
                replace=there is not None,
            )
            for digest, there in self._sizes(folder, list(objects))
            if there != len(objects[digest])
        ]
        if uploads:
            self._bucket.put_many(uploads, lambda _: None)

    def _sizes(self, folder: str, names: Sequence[str]) -> Iterator[tuple[str, int | None]]:
        return side_by_side(
            self.parallelism, names, lambda digest: self._bucket.size(_key(folder, digest))
        )

    def _object(self, folder: str, digest: str, limit: int) -> bytes:
        data = self._read(_key(folder, digest), limit)
        if digests.of_bytes(data) != digest:
            raise corrupt(f"{folder}: {digest} in the store {self.url} has other content.")
        return data

    def _pointer(self, key: str) -> str:
        try:
            text = self._read(key, _MAX_HEAD_BYTES).decode(errors="replace").strip()
        except MissingObjectError:
            return ""
        if not digests.is_digest(text):
            raise corrupt(f"{key} in the store {self.url} does not name a revision.")
        return text

    def _read(self, key: str, limit: int) -> bytes:
        pieces = []
        size = 0
        for piece in self._bucket.read(key):
            size += len(piece)
            if size > limit:
                raise corrupt(f"{key} in the store {self.url} is larger than {limit} bytes.")
            pieces.append(piece)
        return b"".join(pieces)


def decoded(digest: str, data: bytes) -> Tree:
    """Raises FILES_CORRUPT for what hashes right and still is no tree."""
    try:
        return trees.decode(data)
    except trees.BadTreeError as error:
        raise corrupt(f"The tree {digest} is not one: {error}.") from error


def _checked(blob: NewBlob) -> Callable[[], Iterable[bytes]]:
    return lambda: verified(blob.open(), blob.digest, blob.size)


def _given(data: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: (data,)


def _key(folder: str, digest: str) -> str:
    name = digests.hex_of(digest)
    return f"{folder}/{name[:_SHARD]}/{name}"


def _head_key(project: str) -> str:
    check_project(project)
    return f"projects/{project}/head"


def _run_key(project: str, run: str) -> str:
    if not _NAME.fullmatch(run):
        raise fault(Reason.INTERNAL, f"The run id {run[:80]!r} cannot be a name in the store.")
    if not project:
        return f"runs/{run}"
    check_project(project)
    return f"projects/{project}/runs/{run}"

"""The store that all nodes and clients share: blobs, trees, revisions, and each project's head.

    blobs/aa/<hex>  trees/aa/<hex>  revisions/aa/<hex>
    packs/…                                       many small blobs or trees in one: see packs.py
    projects/<project>/head                       the digest of its newest revision
    projects/<project>/runs/<run>                 the digest of the revision that a run left
    runs/<run>                                    the same for runs without a project

Objects are named by their content, checked whenever they are read, and never changed. A head moves
by compare-and-swap. Every method blocks, may be called from any thread, and raises FaultError:
STORE_UNAVAILABLE, STORE_DENIED, FILES_CORRUPT, REVISION_NOT_FOUND.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from executord.core.reasons import FaultError, Reason
from executord.files.cache.blobs import WrongContentError, verified
from executord.files.faults import corrupt, fault
from executord.files.model import digests, revisions, trees
from executord.files.model.trees import Tree
from executord.files.store.bucket import Bucket, MissingObjectError, open_bucket
from executord.files.store.identity import Identity
from executord.files.store.pack_index import Location
from executord.files.store.pack_reader import PackReader
from executord.files.store.pack_writer import PACK_BYTES, SMALL_BYTES
from executord.files.store.packs import Packs, data_key
from executord.files.store.sending import NewBlob, Sender, loose_key
from executord.files.system.parallel import side_by_side
from executord.ports import Revision

__all__ = ["MAX_PROJECT", "BadProjectError", "NewBlob", "Store", "check_project", "decoded"]

MAX_PROJECT = 128
_PROJECT = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")
_RESERVED = {"head", "runs"}  # beside a project of one name alone
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_HEX = re.compile(r"[0-9a-f]{6,64}")
_MAX_HEAD_BYTES = 256
_MANY_PACKS = 64
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


class Store:
    """`packs_home` is where indexes of packs are kept between starts; without it, in memory.

    `known_stores` is the file in which a node remembers the stores it has met: another one under
    the same address is STORE_UNAVAILABLE.
    """

    def __init__(
        self,
        url: str,
        bucket: Bucket,
        *,
        packs_home: Path | None = None,
        known_stores: Path | None = None,
    ) -> None:
        self.url = url
        self._bucket = bucket
        self._identity = Identity(url, bucket, known_stores)
        home = packs_home and packs_home / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._packs = Packs(bucket, home)
        self._reader = PackReader(url, bucket, self._packs)
        self._sender = Sender(bucket, self._packs)

    @classmethod
    def open(
        cls,
        url: str,
        options: Mapping[str, str],
        *,
        create: bool = False,
        packs_home: Path | None = None,
    ) -> "Store":
        """`create` makes the directory of a file:// store where it is missing."""
        return cls(url, open_bucket(url, options, create=create), packs_home=packs_home)

    @property
    def parallelism(self) -> int:
        return self._bucket.parallelism

    # -- reading -----------------------------------------------------------------------------------

    def revision(self, digest: str) -> Revision:
        return revisions.decode(self.revision_bytes(digest))

    def revision_bytes(self, digest: str) -> bytes:
        self._identity.confirm(writing=False)
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
        return self.trees_bytes((digest,))[digest]

    def trees_bytes(self, wanted: Sequence[str]) -> dict[str, bytes]:
        """The same for many, with few requests where they lie in packs."""
        found = {trees.EMPTY_TREE: trees.EMPTY_TREE_BYTES}
        asked = [digest for digest in wanted if digest != trees.EMPTY_TREE]
        found.update(self._reader.read(asked))
        rest = [digest for digest in asked if digest not in found]
        found.update(
            side_by_side(self.parallelism, rest, lambda name: self._loose("trees", name, None))
        )
        return found

    def trees(self, wanted: Iterable[str]) -> dict[str, Tree]:
        found = self.trees_bytes(tuple(wanted))
        return {digest: decoded(digest, data) for digest, data in found.items()}

    def tree(self, digest: str) -> Tree:
        if digest == trees.EMPTY_TREE:
            return ()
        return decoded(digest, self.tree_bytes(digest))

    def learn(self, root: str) -> None:
        """Find out, with few requests, where the things below this root tree lie."""
        self._packs.learn(root)

    def locate(self, blobs: Iterable[str]) -> dict[str, Location]:
        """Those that a known pack holds."""
        return self._packs.find(blobs)

    def pack_path(self, pack: str) -> str | None:
        """Where another process on this node can read the pack."""
        return self._bucket.path_of(data_key(pack))

    def small_blobs(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """Whole blobs, checked, in no promised order; for small ones, since each is in memory."""
        left = dict(sizes)
        for digest, data in self._reader.read(sizes):
            if len(data) != left.pop(digest):
                raise corrupt(f"{digest} is said to have {sizes[digest]} bytes.")
            yield digest, data
        yield from side_by_side(
            self.parallelism, list(left), lambda name: self._loose("blobs", name, sizes[name])
        )

    def blob(self, digest: str, size: int) -> Iterator[bytes]:
        """Its bytes, checked; the fault may come with the last piece only."""
        if size <= SMALL_BYTES:
            yield from (data for _, data in self.small_blobs({digest: size}))
            return
        try:
            yield from verified(self._bucket.read(loose_key("blobs", digest)), digest, size)
        except MissingObjectError as error:
            raise corrupt(f"The store {self.url} lacks the file content {digest}.") from error
        except WrongContentError as error:
            raise corrupt(f"A file in the store {self.url} is damaged: {error}.") from error

    def blob_range(self, digest: str, start: int, length: int) -> bytes:
        """A piece of a large blob, not checked; fewer bytes where it ends before."""
        try:
            return self._bucket.read_range(loose_key("blobs", digest), start, length)
        except MissingObjectError as error:
            raise corrupt(f"The store {self.url} lacks the file content {digest}.") from error

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
        self._identity.confirm(writing=True)
        return self._bucket.swap(_head_key(project), expected.encode(), new.encode())

    def run_revision(self, project: str, run: str) -> str:
        """What the run has left, "" where nothing."""
        return self._pointer(_run_key(project, run))

    def set_run_revision(self, project: str, run: str, revision: str) -> None:
        key = _run_key(project, run)
        self._identity.confirm(writing=True)
        self._bucket.swap(key, self._pointer(key).encode(), revision.encode())

    # -- writing -----------------------------------------------------------------------------------

    def absent_blobs(self, sizes: Mapping[str, int]) -> dict[str, bool]:
        """Those that have to be sent; True where a damaged one (of another size) is in the way."""
        return self._sender.absent_blobs(sizes)

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
        self._identity.confirm(writing=True)
        self._sender.put_blobs(blobs, on_sent, damaged)

    def put_trees(self, objects: Mapping[str, bytes], *, again: bool = False) -> None:
        """Complete and durable on return. `again` also writes those that a pack holds."""
        self._identity.confirm(writing=True)
        self._sender.put_trees(objects, again=again)

    def put_revision(self, digest: str, data: bytes, *, alone: bool = False) -> None:
        """With a hint where to look for its files. `alone` if the packs just written hold them
        all, so that those of its parent are not looked into.
        """
        self._identity.confirm(writing=True)
        with contextlib.suppress(revisions.BadRevisionError, FaultError):
            revision = revisions.decode(data)
            before = () if alone else filter(None, (revision.parent, revision.merged))
            self._sender.hint(revision.tree, [self.revision(one).tree for one in before])
        self._sender.put_loose("revisions", {digest: data})

    def is_scattered(self, tree: str, live_bytes: int) -> bool:
        """Whether the small files of a tree lie in so many packs, most of it dead or in crumbs,
        that they should be written afresh. `live_bytes`: how much of them is needed.
        """
        packs = self._packs.learn(tree)
        if len(packs) <= _MANY_PACKS:
            return False
        held = self._packs.bytes_of(packs)
        return held > 2 * live_bytes or held < len(packs) * (PACK_BYTES // 8)

    # -- parts -------------------------------------------------------------------------------------

    def _loose(self, folder: str, digest: str, size: int | None) -> bytes:
        """What no known pack gives: the loose object, or a pack nobody has told us of."""
        limit = trees.MAX_TREE_BYTES if size is None else size
        problem: FaultError | None = None
        try:
            data = self._object(folder, digest, limit)
            if size is None or len(data) == size:
                return data
            problem = corrupt(f"{digest} in the store {self.url} has {len(data)} bytes.")
        except MissingObjectError:
            problem = self._reader.explain(digest)
        except FaultError as error:
            if error.fault.reason is not Reason.FILES_CORRUPT:
                raise
            problem = error
        self._packs.refresh()
        for _, data in self._reader.read((digest,)):
            if size is None or len(data) == size:
                return data
        if problem is not None:
            raise problem
        what = "tree" if size is None else "file content"
        raise corrupt(f"The store {self.url} lacks the {what} {digest}.")

    def _object(self, folder: str, digest: str, limit: int) -> bytes:
        data = self._read(loose_key(folder, digest), limit)
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

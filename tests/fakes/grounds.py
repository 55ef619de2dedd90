"""A node's cache without a daemon: trees from plain mappings, built as snapshots and layers, and
mounted as a run would have them.
"""

import os
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.grounds import About
from executord.files.cache.layout import Layout
from executord.files.cache.nearest import Prices
from executord.files.cache.objects import Trees
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.tree_build import BuildTools, Made, TreeBuild
from executord.files.model import digests, trees
from executord.files.model.trees import Entry, Tree
from executord.files.progress import Counter
from executord.ports import Progress

OWNER = (1234, 2345) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
ALWAYS = Prices(small_tree=0, least=0, share=0.0, most_share=1e6)


def nobody(_: Progress) -> None:
    """For builds that nobody looks at."""


Spec = Mapping[str, Any]
"""By name: text is a file's content, a tuple one with the executable bit, a link's target is in a
list, a mapping is a directory."""


@dataclass
class Local:
    """What a node has, and no store behind it. `asked` are the blobs that would be fetched."""

    trees_here: Trees
    blobs_here: Blobs
    asked: list[BlobKey]
    remote: dict[BlobKey, bytes]
    remote_trees: dict[str, bytes]
    asked_trees: list[str]

    def trees(self, wanted: Sequence[str]) -> dict[str, Tree]:
        found = {}
        for digest in wanted:
            tree = self.trees_here.get(digest)
            if tree is None:
                self.asked_trees.append(digest)
                self.trees_here.put({digest: self.remote_trees[digest]})
                tree = self.trees_here.get(digest)
                assert tree is not None
            found[digest] = tree
        return found

    def blobs(
        self, sizes: Mapping[BlobKey, int], counter: Counter, cancelled: threading.Event
    ) -> None:
        batch = self.blobs_here.batch()
        for key, size in sizes.items():
            self.asked.append(key)
            batch.write(key, size, [self.remote[key]])
        batch.commit()


def entries_of(spec: Spec, objects: dict[str, bytes], files: dict[BlobKey, bytes]) -> list[Entry]:
    """The entries; the trees below go into `objects`, the files' contents into `files`."""
    entries = []
    for name, value in spec.items():
        if isinstance(value, Mapping):
            inner = entries_of(value, objects, files)
            digest, objects[digest] = trees.encode(inner)
            entries.append(trees.directory_entry(name, digest, inner))
        elif isinstance(value, list):
            entries.append(trees.link_entry(name, value[0]))
        else:
            executable = isinstance(value, tuple)
            text = (value[0] if executable else value).encode()
            entry = trees.file_entry(name, digests.of_bytes(text), len(text), executable=executable)
            files[BlobKey(entry.digest, executable)] = text
            entries.append(entry)
    return entries


class Node:
    def __init__(self, root: Path, prices: Prices = ALWAYS) -> None:
        self.layout = Layout(root)
        self.layout.make()
        self.blobs = Blobs(self.layout, OWNER)
        self.blobs.load()
        self.trees = Trees(self.layout.trees)
        self.snapshots = Snapshots(self.layout, self.blobs, OWNER)
        self.snapshots.open()
        self.source = Local(self.trees, self.blobs, [], {}, {}, [])
        self.room: list[tuple[int, int]] = []
        self.tools = BuildTools(
            source=self.source,
            blobs=self.blobs,
            trees=self.trees,
            snapshots=self.snapshots,
            make_room=lambda size, inodes: self.room.append((size, inodes)),
            prices=prices,
        )

    def put(self, spec: Spec, *, here: bool = True) -> str:
        """The tree's digest. Its parts are on the node, or in a store far away."""
        objects: dict[str, bytes] = {}
        digest, objects[digest] = trees.encode(entries_of(spec, objects, self.source.remote))
        if here:
            self.trees.put(objects)
            wanted = {key for key in self.source.remote if not self.blobs.has(key)}
            self.source.blobs(
                {key: len(self.source.remote[key]) for key in wanted},
                Counter("", None),
                threading.Event(),
            )
            self.source.asked.clear()
        self.source.remote_trees.update(objects)
        return digest

    def build(self, tree: str, *, whole: bool = False, likely: Sequence[str] = ()) -> Made:
        return self.begin(tree, likely).run(whole=whole)

    def begin(self, tree: str, likely: Sequence[str] = ()) -> TreeBuild:
        return TreeBuild(self.tools, tree, nobody, threading.Event(), likely)

    def layer_over(self, base: str, tree: str) -> About:
        about = self.build(tree, likely=[base]).about
        assert (about.base, about.kind) == (base, "layer")
        return about

    def home(self, kind: str, tree: str) -> Path:
        folder = self.layout.layers if kind == "layer" else self.layout.snapshots
        return folder / tree.removeprefix("sha256:")


@contextmanager
def mounted(lowers: Sequence[Path], *, writable: Path | None = None) -> Iterator[Path]:
    """What a run would see. With `writable` it may also change it, as a run does."""
    if os.geteuid() != 0:
        pytest.skip("mounts an overlay")
    with TemporaryDirectory(prefix="executord-merged-") as text:
        options = ["userxattr", "lowerdir=" + ":".join(map(str, lowers))]
        if writable is not None:
            for name in ("upper", "work"):
                (writable / name).mkdir(parents=True)
            options += [f"upperdir={writable / 'upper'}", f"workdir={writable / 'work'}"]
        elif len(lowers) == 1:
            yield lowers[0]  # an overlay needs two
            return
        command = ["mount", "-t", "overlay", "overlay", "-o", ",".join(options), text]
        subprocess.run(command, check=True)
        try:
            yield Path(text)
        finally:
            subprocess.run(["umount", text], check=True)


def seen(root: Path) -> dict[str, object]:
    """Every path with all that a run can see of it, and whether its inode is its own."""
    found: dict[str, object] = {}
    inodes: dict[int, str] = {}
    for folder, directories, files in os.walk(root):
        for name in [*directories, *files, "."]:
            path = Path(folder, name)
            facts = path.lstat()
            what: object = ""
            if stat.S_ISLNK(facts.st_mode):
                what = str(path.readlink())
            elif stat.S_ISREG(facts.st_mode):
                what = path.read_bytes()
                other = inodes.setdefault(facts.st_ino, str(path))
                assert other == str(path), f"{path} and {other} are one inode"
            shown = os.path.relpath(path, root)
            found[shown] = (oct(facts.st_mode), facts.st_uid, facts.st_gid, what)
    return found


def expected(spec: Spec, path: str = "") -> dict[str, object]:
    """What `seen` gives of it."""
    found: dict[str, object] = {path or ".": (oct(stat.S_IFDIR | 0o755), *OWNER, "")}
    for name, value in spec.items():
        below = f"{path}/{name}" if path else name
        if isinstance(value, Mapping):
            found.update(expected(value, below))
        elif isinstance(value, list):
            found[below] = (oct(stat.S_IFLNK | 0o777), *OWNER, value[0])
        elif isinstance(value, tuple):
            found[below] = (oct(stat.S_IFREG | 0o755), *OWNER, value[0].encode())
        else:
            found[below] = (oct(stat.S_IFREG | 0o644), *OWNER, value.encode())
    return found


MANY = {f"d{n}": {f"f{m}": f"{n}-{m}" for m in range(20)} for n in range(20)}


def with_changes(spec: Spec, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` by path; None takes away."""
    result = dict(spec)
    for path, value in changes.items():
        name, _, rest = path.partition("/")
        if rest:
            below = result.get(name)
            result[name] = with_changes(below if isinstance(below, Mapping) else {}, {rest: value})
        elif value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result


@dataclass(frozen=True)
class Chain:
    """A snapshot and two layers, each on the one before."""

    node: Node
    base: str
    middle: str
    top: str

    def grounds(self) -> set[tuple[str, str]]:
        return {(kind, tree) for kind, tree in self.node.snapshots.grounds()}


def new_chain(node: Node) -> Chain:
    base = node.put(MANY)
    node.build(base, whole=True)
    middle = node.put({**MANY, "x": "1"})
    node.layer_over(base, middle)
    top = node.put({**MANY, "x": "2"})
    about = node.layer_over(middle, top)
    assert about.depth == 2
    return Chain(node, base, middle, top)

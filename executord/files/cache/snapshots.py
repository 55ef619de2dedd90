"""Snapshots and layers: trees as real directories, ready to be below any number of runs.

    snapshots-v1/<hex of the tree>/root/       the files, linked to blobs
    layers-v1/<hex of the tree>/root/          only what differs from the ground it stands on
                               about           what it holds and stands on, as JSON
                               blobs           which blobs it links to itself, 41 bytes each
                               trees           which trees it is made of itself, 32 bytes each
                               durable         there when a power cut can no longer tear it

In a layer a 0/0 character device is a deletion, and a directory with `user.overlay.opaque=y` hides
what is below (kernel: Documentation/filesystems/overlayfs.rst). A tree may have both; then the
snapshot is taken, and who stands on the layer keeps it.

Both are built aside and renamed, so that one that is there is whole; never changed afterwards.
They are pure cache, so nothing waits for the disk: one that was not marked durable before a power
cut is thrown away at the next start.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.grounds import About, Ground, GroundKind, boot_id
from executord.files.cache.layout import Layout
from executord.files.cache.records import read_records
from executord.files.model import digests
from executord.files.system import disk

__all__ = ["About", "Ground", "Snapshots"]

log = structlog.get_logger(__name__)

_MOST_LAYERS = 8
_OPTION_BYTES = 3400
_RUN_BYTES = 2 * 128 + 200  # upperdir and workdir besides the state directory, and the flags
_LOWER_BYTES = len("/snapshots-v1//root:") + 64


@dataclass(slots=True)
class _Known:
    about: About
    last_used: float
    made_here: bool = False


class Snapshots:
    """Blocks; safe in any thread. A tree's digest alone means its snapshot, or else its layer."""

    def __init__(self, layout: Layout, blobs: Blobs, owner: tuple[int, int]) -> None:
        self.layout = layout
        self.blobs = blobs
        self.owner = owner
        self._boot = boot_id()
        self._known: dict[Ground, _Known] | None = None
        self._holders: dict[str, dict[str, GroundKind | None]] = {}
        self._held_twice: set[tuple[str, str]] = set()
        self._lock = threading.RLock()
        self.keep_aside: Callable[[Path, Ground], bool] = lambda home, _: layout.throw_away(home)
        state = len(os.fsencode(layout.root))
        room = _OPTION_BYTES - _RUN_BYTES - 2 * state
        self.most_layers = max(0, min(_MOST_LAYERS, room // (state + _LOWER_BYTES) - 1))

    def put_away(self, ground: Ground) -> bool:
        """Out of sight; `keep_aside` sees to it that a run mounted on it keeps its files. False
        where there is nothing.
        """
        return self.keep_aside(self._home(ground), ground)

    # -- what is here ------------------------------------------------------------------------------

    def open(self) -> None:
        """Take up what is there; throw away what a power cut may have torn. Raises OSError."""
        with self._lock:
            self._known = {}
            for ground in self._on_disk():
                about = self._read(ground)
                if about is not None and not self._may_be_torn(ground, about):
                    used = (self._home(ground) / "about").stat().st_mtime
                    self._known[ground] = _Known(about, used)
                elif self.put_away(ground):
                    log.warning("cache.torn", kind=ground.kind, tree=ground.tree)
            for ground in list(self._known):
                if ground in self._known and not self._stands(ground):
                    self._drop(ground)

    def find(self, tree: str, kind: GroundKind | None = None) -> About | None:
        """None where there is none; costs the same whatever its size."""
        ground = self.ground_of(tree, kind)
        return self._index()[ground].about if ground is not None else None

    def ground_of(self, tree: str, kind: GroundKind | None = None) -> Ground | None:
        with self._lock:
            kinds: tuple[GroundKind, ...] = ("snapshot", "layer") if kind is None else (kind,)
            for each in kinds:
                ground = Ground(each, tree)
                if ground in self._index() and self._is_whole(ground):
                    return ground
        return None

    def grounds(self) -> dict[Ground, About]:
        """All of them, of both kinds."""
        with self._lock:
            return {ground: known.about for ground, known in self._index().items()}

    def by_last_use(self) -> list[tuple[Ground, About]]:
        """The last used first."""
        with self._lock:
            known = sorted(self._index().items(), key=lambda each: -each[1].last_used)
            return [(ground, each.about) for ground, each in known]

    def all(self) -> dict[str, About]:
        """The whole snapshots alone."""
        return {
            ground.tree: about
            for ground, about in self.grounds().items()
            if ground.kind == "snapshot"
        }

    def chain(self, ground: Ground) -> tuple[Ground, ...]:
        """It, and what it stands on, top first; the last one is a snapshot."""
        with self._lock:
            found = [ground]
            known = self._index().get(ground)
            while known is not None and (below := known.about.ground_below) is not None:
                found.append(below)
                known = self._index().get(below)
            return tuple(found)

    def lower(self, tree: str) -> Path:
        """The directory of a whole snapshot."""
        return self._home(Ground("snapshot", tree)) / "root"

    def lowers(self, tree: str, holder: str = "") -> tuple[Path, ...]:
        """The directories that together show the tree, top first. Of one that is here.

        `holder`, who has pinned the tree, from now on stands on these alone.
        """
        with self._lock:
            ground = self.ground_of(tree) or Ground("snapshot", tree)
            narrows = (tree, holder) not in self._held_twice
            if narrows and holder in self._holders.get(tree, {}):
                self._holders[tree][holder] = ground.kind
            return tuple(self._home(each) / "root" for each in self.chain(ground))

    def root(self, ground: Ground) -> Path:
        return self._home(ground) / "root"

    def touch(self, tree: str) -> None:
        """It was used now, and what it stands on. Raises FileNotFoundError."""
        now = time.time()
        with self._lock:
            ground = self._resolve(tree)
            for each in self.chain(ground):
                os.utime(self._home(each) / "about", (now, now))
                known = self._index().get(each)
                if known is not None:
                    known.last_used = now

    def last_used(self, tree: str | Ground) -> float:
        """Raises FileNotFoundError."""
        ground = self._resolve(tree)
        with self._lock:
            known = self._index().get(ground)
        if known is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(ground))
        return known.last_used

    def blobs_of(self, tree: str | Ground) -> Iterator[tuple[BlobKey, int]]:
        """The blobs it links to itself, with their sizes, each once. Raises FileNotFoundError."""
        return read_records(self.records_path(self._resolve(tree)))

    def records_path(self, ground: Ground) -> Path:
        return self._home(ground) / "blobs"

    def trees_of(self, tree: str | Ground) -> list[str]:
        """The trees it is made of itself; those of what it stands on are not among them."""
        data = (self._home(self._resolve(tree)) / "trees").read_bytes()
        return [digests.PREFIX + data[at : at + 32].hex() for at in range(0, len(data), 32)]

    # -- who needs it ------------------------------------------------------------------------------

    def pin(self, tree: str, holder: str) -> None:
        """It stays until `unpin`, of either kind, with all it stands on. Pin first, then look
        whether it is there.
        """
        with self._lock:
            held = self._holders.setdefault(tree, {})
            if holder in held:
                self._held_twice.add((tree, holder))  # for two purposes: either kind may be meant
            held[holder] = None

    def unpin(self, holder: str) -> None:
        with self._lock:
            for tree in [tree for tree, held in self._holders.items() if holder in held]:
                del self._holders[tree][holder]
                self._held_twice.discard((tree, holder))
                if not self._holders[tree]:
                    del self._holders[tree]

    def holders(self) -> dict[Ground, tuple[str, ...]]:
        """By ground, who holds it, directly or by standing on something that stands on it."""
        with self._lock:
            found: dict[Ground, set[str]] = {}
            for tree, held in self._holders.items():
                for holder, only in held.items():
                    kinds: tuple[GroundKind, ...] = (
                        ("snapshot", "layer") if only is None else (only,)
                    )
                    for kind in kinds:
                        for ground in self.chain(Ground(kind, tree)):
                            found.setdefault(ground, set()).add(holder)
            return {ground: tuple(sorted(held)) for ground, held in found.items()}

    def held_trees(self) -> dict[str, tuple[str, ...]]:
        """By tree, who has pinned it by name."""
        with self._lock:
            return {tree: tuple(held) for tree, held in self._holders.items()}

    def pinned(self) -> dict[str, tuple[str, ...]]:
        """By tree, who holds it; those that are stood upon too."""
        found: dict[str, set[str]] = {}
        for ground, held in self.holders().items():
            found.setdefault(ground.tree, set()).update(held)
        return {tree: tuple(sorted(held)) for tree, held in found.items()}

    def standing_on(self, ground: Ground) -> list[Ground]:
        """The layers that lie directly on it."""
        with self._lock:
            return [
                other
                for other, known in self._index().items()
                if known.about.ground_below == ground
            ]

    def throw_away(self, tree: str | Ground) -> bool:
        """False where somebody holds it, a layer stands on it, or it is not there."""
        with self._lock:
            ground = self._resolve(tree)
            if ground in self.holders() or self.standing_on(ground):
                return False
            self._index().pop(ground, None)
            return self.layout.throw_away(self._home(ground))

    # -- new ones ----------------------------------------------------------------------------------

    def publish(self, aside: Path, ground: Ground, about: About) -> About:
        """`aside` becomes the ground, unless there is one: then that stays. Raises OSError."""
        with self._lock:
            if self.ground_of(ground.tree, ground.kind) is not None:
                self.layout.throw_away(aside)
                return self._index()[ground].about
            about = msgspec.structs.replace(about, id=disk.unique_name(), boot=self._boot)
            (aside / "about").write_bytes(msgspec.json.encode(about))
            try:
                aside.rename(self._home(ground))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                self.layout.throw_away(self._home(ground))  # none that could be used
                aside.rename(self._home(ground))
            self._index()[ground] = _Known(about, time.time(), made_here=True)
            return about

    def take_out(self, ground: Ground, move: Callable[[Path], bool]) -> bool:
        """Out of service, whoever holds it; `move` takes its directory away, and says whether it
        was there.
        """
        with self._lock:
            self._index().pop(ground, None)
            return move(self._home(ground))

    def is_made_here(self, ground: Ground) -> bool:
        """By this process, and not found when it started."""
        with self._lock:
            known = self._index().get(ground)
            return known is not None and known.made_here

    def not_durable(self) -> list[Ground]:
        with self._lock:
            known = list(self._index().items())
        return [
            ground
            for ground, each in known
            if each.about.boot and not (self._home(ground) / "durable").exists()
        ]

    def mark_durable(self, grounds: list[Ground]) -> None:
        """After all that was written when they were made has reached the disk."""
        for ground in grounds:
            try:
                (self._home(ground) / "durable").touch()
            except FileNotFoundError:
                continue  # thrown away meanwhile

    # -- inside ------------------------------------------------------------------------------------

    def _index(self) -> dict[Ground, _Known]:
        if self._known is None:
            self.open()
        assert self._known is not None
        return self._known

    def _on_disk(self) -> Iterator[Ground]:
        kinds: tuple[GroundKind, ...] = ("snapshot", "layer")
        for kind in kinds:
            for name in os.listdir(self._folder(kind)):  # noqa: PTH208 - names are enough
                if digests.is_digest(digests.PREFIX + name):
                    yield Ground(kind, digests.PREFIX + name)

    def _may_be_torn(self, ground: Ground, about: About) -> bool:
        return about.boot not in ("", self._boot) and not (self._home(ground) / "durable").exists()

    def _read(self, ground: Ground) -> About | None:
        try:
            about = msgspec.json.decode((self._home(ground) / "about").read_bytes(), type=About)
        except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError, UnicodeError):
            return None
        return about if about.kind == ground.kind else None

    def _is_whole(self, ground: Ground) -> bool:
        """What its description says on disk is what we know; so for all that it stands on."""
        index = self._index()
        for each in self.chain(ground):
            if each not in index or self._read(each) != index[each].about:
                self._drop(each)
                return False
        if not self._stands(ground):
            self._drop(ground)
            return False
        return True

    def _stands(self, ground: Ground) -> bool:
        """On exactly what it was made for, down to a snapshot."""
        index = self._index()
        for each in self.chain(ground):
            known = index.get(each)
            if known is None:
                return False
            below = known.about.ground_below
            if below is not None and (
                below not in index or index[below].about.id != known.about.base_id
            ):
                return False
        return True

    def _drop(self, ground: Ground) -> None:
        """Not of our making, or what it stands on is gone: out of sight, with all that stands on
        it. What a run may be mounted on stays as it is, under another name, as long as it lives.
        """
        held = ground in self.holders()
        for other in self.standing_on(ground):
            self._drop(other)
        self._index().pop(ground, None)
        if held:
            self.put_away(ground)
        else:
            self.layout.throw_away(self._home(ground))
        log.warning("cache.broken", kind=ground.kind, tree=ground.tree, held=held)

    def _resolve(self, tree: str | Ground) -> Ground:
        if isinstance(tree, Ground):
            return tree
        with self._lock:
            layer = Ground("layer", tree)
            snapshot = Ground("snapshot", tree)
            return layer if snapshot not in self._index() and layer in self._index() else snapshot

    def _folder(self, kind: GroundKind) -> Path:
        return self.layout.snapshots if kind == "snapshot" else self.layout.layers

    def _home(self, ground: Ground) -> Path:
        return self._folder(ground.kind) / digests.hex_of(ground.tree)

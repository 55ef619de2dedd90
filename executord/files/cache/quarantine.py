"""What was found damaged, kept aside for a while so that somebody can find out why.

    quarantine/<name>        the blob's file, or the snapshot that live runs are mounted on still
               <name>.json   what it was, when it was found, what it hashes to

Bounded in bytes, number and age: the oldest go first. A snapshot goes as soon as no run is
mounted on it.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from executord.files.cache.layout import Layout
from executord.files.system import disk

FoundBy = Literal["insert", "first use", "scrub", "verify"]
NOTE = ".json"
_ARRIVING_SECONDS = 60.0


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """`hashes_to` is "" where it could not be read. `runs` are those mounted on it."""

    kind: Literal["blob", "snapshot", "layer"]
    digest: str
    what: str
    found_by: FoundBy
    found_at: float
    executable: bool = False
    size_bytes: int = 0
    hashes_to: str = ""
    trees: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    max_bytes: int = 1 << 30
    max_items: int = 1000
    max_age_seconds: float = 30 * 86_400.0


class Quarantine:
    """Blocks; any thread may call it."""

    def __init__(self, layout: Layout, bounds: Bounds = Bounds()) -> None:
        self._layout = layout
        self._bounds = bounds
        self._lock = threading.Lock()

    def take(self, path: str | Path, note: Note) -> bool:
        """Out of its place and into here, at once. False where it is gone already. OSError."""
        name = disk.unique_name()
        target = self._layout.quarantine / name
        disk.write_new(f"{target}{NOTE}", (msgspec.json.encode(note),))
        try:
            os.rename(path, target)  # noqa: PTH104 - either kind of path
        except FileNotFoundError:
            Path(f"{target}{NOTE}").unlink()
            return False
        return True

    def held(self) -> list[tuple[Path, Note, int]]:
        """What is here, the oldest first, with the bytes it takes."""
        found = []
        for note_path in self._layout.quarantine.glob(f"*{NOTE}"):
            path = note_path.with_suffix("")
            try:
                note = msgspec.json.decode(note_path.read_bytes(), type=Note)
                size = disk.allocated(path.stat().st_size)
            except (OSError, msgspec.MsgspecError, UnicodeError):
                continue
            found.append((path, note, size))
        return sorted(found, key=lambda item: item[1].found_at)

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.held())

    def tidy(self, is_live: Callable[[str], bool], *, now: float | None = None) -> None:
        """Let go of what is too old, too much, or needed by no run; and of what a crash left."""
        now = time.time() if now is None else now
        with self._lock:
            held = self.held()
            known = {path.name for path, _, _ in held}
            total, number = sum(size for _, _, size in held), len(held)
            for path, note, size in held:
                fits = total <= self._bounds.max_bytes and number <= self._bounds.max_items
                if note.kind != "blob":
                    stays = any(is_live(run) for run in note.runs)
                else:
                    stays = fits and now - note.found_at <= self._bounds.max_age_seconds
                if not stays:
                    total, number = total - size, number - 1
                    self._layout.throw_away(path)
                    self._layout.throw_away(Path(f"{path}{NOTE}"))
            for path in list(self._layout.quarantine.iterdir()):
                if path.name.removesuffix(NOTE) not in known and not _is_new(path, now):
                    self._layout.throw_away(path)


def _is_new(path: Path, now: float) -> bool:
    """Without its other half, it may be on its way in."""
    try:
        return now - path.lstat().st_mtime < _ARRIVING_SECONDS
    except FileNotFoundError:
        return False

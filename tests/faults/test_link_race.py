"""A live run swaps its files with links while they are read: nothing outside is ever read.

The same attack on a reader that walks by paths does find a way out: else it would prove nothing.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from executord.files.model import digests
from executord.files.model.trees import EMPTY_TREE, Entry, Tree
from executord.files.system.directories import MovedError, open_regular
from executord.files.workspace.changed import UpperDirectory
from executord.files.workspace.changes import Found, merge
from executord.files.workspace.live_copy import copy_changes
from tests.fakes.link_attacker import lay_traps

ROOT = Path(__file__).parents[2]
TRIES = 1_000_000
COPIES = 150
TRAPS = 400
SECONDS = 50.0


class Look:
    """Counts what was opened, and what of it lay outside."""

    def __init__(self) -> None:
        self.tries = 0
        self.escapes = 0

    def at(self, path: str, content: bytes) -> None:
        self.tries += 1
        if b"secret" in content or "secret" in path:
            self.escapes += 1


class NoTrees:
    def tree(self, digest: str) -> Tree:
        assert digest == EMPTY_TREE
        return ()


def no_base(_: Entry) -> bytes:
    raise AssertionError("there is no base")


@contextmanager
def attacked(tmp_path: Path) -> Iterator[Path]:
    upper = tmp_path / "upper"
    upper.mkdir()
    lay_traps(upper, tmp_path / "outside", TRAPS)
    attacker = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.link_attacker", str(upper)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == b"begun\n"
        yield upper
        assert attacker.poll() is None
    finally:
        attacker.kill()
        attacker.wait()
        if attacker.stdout is not None:
            attacker.stdout.close()


def attack_on(upper: Path, look: Look, read: Callable[[Path, Look], None], tries: int) -> None:
    gives_up_at = time.monotonic() + SECONDS
    while look.tries < tries and time.monotonic() < gives_up_at:
        read(upper, look)


def as_finishing_does(upper: Path, look: Look) -> None:
    def take(found: Found) -> tuple[str, int]:
        try:
            fd = open_regular(found.dir_fd, found.name)
        except BaseException:
            look.tries += 1  # it was a link by then
            raise
        try:
            content = os.read(fd, 100)
        finally:
            os.close(fd)
        look.at(found.path, content)
        return digests.EMPTY, len(content)

    with suppress(MovedError):
        merged = merge(upper, EMPTY_TREE, NoTrees(), take_file=take, read_base=no_base)
        look.tries += sum(entry.kind == "link" for entry in merged.root)


def by_paths(upper: Path, look: Look) -> None:
    for directory, _, names in os.walk(upper):
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118 - as naive as can be
            with suppress(OSError):
                if not os.path.islink(path):  # noqa: PTH114 - as above
                    with open(path, "rb") as file:  # noqa: PTH123 - as above
                        look.at(path, file.read(100))


@pytest.mark.timeout(180)
def test_a_million_swaps_lead_nowhere(tmp_path: Path) -> None:
    look = Look()
    with attacked(tmp_path) as upper:
        attack_on(upper, look, as_finishing_does, TRIES)
    print(f"{look.tries} tries, {look.escapes} escapes")
    assert look.tries >= TRIES // 5  # of a slow machine; TRIES on any other
    assert look.escapes == 0


@pytest.mark.timeout(120)
def test_the_same_attack_finds_a_way_out_of_a_walk_by_paths(tmp_path: Path) -> None:
    look = Look()
    with attacked(tmp_path) as upper:
        while not look.escapes:
            attack_on(upper, look, by_paths, look.tries + 1000)
    assert look.escapes > 0


@pytest.mark.timeout(120)
def test_a_copy_of_a_directory_that_is_swapped_all_the_time_holds_nothing_from_outside(
    tmp_path: Path,
) -> None:
    """A copy is taken while the run stands still; also if it did not, nothing would come in."""
    with attacked(tmp_path) as upper:
        for n in range(COPIES):
            aside = tmp_path / f"aside-{n}"
            with suppress(MovedError, OSError):
                copy_changes(UpperDirectory(upper), aside, threading.Event())
            assert not any(b"secret" in path.read_bytes() for path in files_in(aside))
            assert not list(aside.rglob("secret*"))
    copy_changes(UpperDirectory(upper), tmp_path / "at rest", threading.Event())
    assert files_in(tmp_path / "at rest")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_symlink() and path.is_file()]

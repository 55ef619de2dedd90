"""The projects that the file benchmarks use, made of random bytes below one directory.

S is 10,000 files of 4 KiB; M 100,000 of 8 KiB in the mean, a hundred to a directory; L four of
1 GiB. With `quick` each is a small likeness of itself.
"""

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

FILES_A_DIRECTORY = 100
_SEED = 2041
_MIB = 1 << 20


def make_s(root: Path, *, quick: bool = False) -> Path:
    return many_files(root, 500 if quick else 10_000, size=lambda _: 4096)


def make_m(root: Path, *, quick: bool = False) -> Path:
    chance = random.Random(_SEED)
    return many_files(root, 2_000 if quick else 100_000, size=lambda _: chance.randrange(16 << 10))


def make_l(root: Path, *, quick: bool = False) -> Path:
    root.mkdir(parents=True)
    for number in range(4):
        with (root / f"large{number}").open("wb", buffering=0) as file:
            for _ in range(8 if quick else 1024):
                file.write(os.urandom(_MIB))
    return root


def many_files(root: Path, files: int, *, size: Callable[[int], int]) -> Path:
    """`size` gives the bytes of the file of that number."""
    folder = root
    for number in range(files):
        if number % FILES_A_DIRECTORY == 0:
            folder = root / f"part{number // 10_000}" / f"d{number // FILES_A_DIRECTORY}"
            folder.mkdir(parents=True)
        (folder / f"f{number}").write_bytes(os.urandom(size(number)))
    return root


def files_of(root: Path) -> Sequence[Path]:
    """All files, in the order in which they were made."""
    return sorted(
        (path for path in root.rglob("*") if path.is_file()), key=lambda path: int(path.name[1:])
    )

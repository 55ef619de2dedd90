"""A run that swaps its files and directories with links, as fast as the kernel lets it.

`python -m tests.fakes.link_attacker DIRECTORY`: names that end in `.link` trade places with those
without it, again and again, until the process is ended. Prints a line once it has begun.
"""

import ctypes
import os
import sys
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def lay_traps(upper: Path, outside: Path, count: int) -> None:
    """Half of them files, half directories; what their links lead to holds the word `secret`."""
    outside.mkdir()
    (outside / "inner").write_text("secret")
    (outside / "secret-name").write_text("secret")
    for n in range(count):
        if n % 2:
            (upper / f"f{n}").write_text("inside")
            (upper / f"f{n}.link").symlink_to(outside / "inner")
        else:
            (upper / f"d{n}").mkdir()
            (upper / f"d{n}/inner").write_text("inside")
            (upper / f"d{n}.link").symlink_to(outside)
    (upper / "moving/below").mkdir(parents=True)
    (upper / "moving/below/inner").write_text("inside")
    (upper / "moving/below.link").symlink_to(outside)


def attack(directory: Path) -> None:
    """Never ends by itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    links = [path for path in directory.rglob("*.link") if path.is_symlink()]
    pairs = [(os.fsencode(link), os.fsencode(str(link).removesuffix(".link"))) for link in links]
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while True:
        for one, two in pairs:
            libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, two, _RENAME_EXCHANGE)


if __name__ == "__main__":
    attack(Path(sys.argv[1]))

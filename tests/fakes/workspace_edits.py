"""What runs do to their directories, as shell scripts, and what has to come of it.

A script is for the plainest shell there is, that of a container; it works on the files of PROJECT,
as a user who is not root. It writes in place only what is below `w/`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.files import contents, write_files

WRITABLE = ("w/",)  # gitignore patterns: the directory, wherever it is
_DEEP = 300


@dataclass(frozen=True, slots=True)
class Edit:
    """`puts` and `drops` tell how what `described` says of PROJECT changes; `counts` are files
    added, changed and deleted; `skips` are the paths that cannot be stored.
    """

    name: str
    script: str
    puts: Mapping[str, str] = field(default_factory=dict)
    drops: tuple[str, ...] = ()
    counts: tuple[int, int, int] = (0, 0, 0)
    skips: tuple[str, ...] = ()

    def expected(self, before: Mapping[str, str]) -> dict[str, str]:
        left = {name: what for name, what in before.items() if name not in self.drops}
        return {**left, **self.puts}


def make_project(root: Path) -> Path:
    write_files(
        root,
        {
            "a.txt": "a",
            "twin.txt": "a",
            "data/one.csv": "1",
            "data/two.csv": "2",
            "src/deep/x.py": "x",
            "run.sh": "echo",
            "w/edit.txt": "edit",
            "w/same.txt": "edit",
            "w/tool": "tool",
            "empty/": "",
        },
    )
    for name in ("run.sh", "w/tool"):
        (root / name).chmod(0o755)
    (root / "link").symlink_to("a.txt")
    return root


def described(root: Path) -> dict[str, str]:
    """As `contents`, and `*` after the name of what is executable."""
    return {
        f"{name}*" if _is_executable(root / name) else name: what
        for name, what in contents(root).items()
    }


def _is_executable(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and bool(path.stat().st_mode & 0o100)


EDITS: tuple[Edit, ...] = (
    Edit("nothing at all", "true"),
    Edit(
        "new files and directories",
        "echo n > new.txt; mkdir -p out/sub hollow; echo r > out/sub/r.txt",
        puts={"new.txt": "n\n", "out/": "", "out/sub/": "", "out/sub/r.txt": "r\n", "hollow/": ""},
        counts=(3, 0, 0),
    ),
    Edit(
        "files written in place",
        "echo more >> w/edit.txt; echo new > w/same.txt",
        puts={"w/edit.txt": "editmore\n", "w/same.txt": "new\n"},
        counts=(0, 2, 0),
    ),
    Edit(
        "the same size and the same times, other bytes",
        "cp -p w/edit.txt kept; printf tide > w/edit.txt; touch -r kept w/edit.txt; rm kept",
        puts={"w/edit.txt": "tide"},
        counts=(0, 1, 0),
    ),
    Edit(
        "files and directories deleted",
        "rm data/one.csv; rm -r src; rmdir empty",
        drops=("data/one.csv", "src/", "src/deep/", "src/deep/x.py", "empty/"),
        counts=(0, 0, 3),
    ),
    Edit(
        "everything deleted",
        "rm -r a.txt twin.txt data src run.sh w empty link",
        drops=(
            *("a.txt", "twin.txt", "data/", "data/one.csv", "data/two.csv", "src/", "src/deep/"),
            *("src/deep/x.py", "run.sh*", "w/", "w/edit.txt", "w/same.txt", "w/tool*", "empty/"),
            "link",
        ),
        counts=(0, 0, 11),
    ),
    Edit(
        "a renamed file",
        "mv a.txt b.txt",
        puts={"b.txt": "a"},
        drops=("a.txt",),
        counts=(1, 0, 1),
    ),
    Edit(
        "a renamed directory",
        "mv data moved",
        puts={"moved/": "", "moved/one.csv": "1", "moved/two.csv": "2"},
        drops=("data/", "data/one.csv", "data/two.csv"),
        counts=(2, 0, 2),
    ),
    Edit(
        "a file moved over another one of equal content",
        "mv -f a.txt twin.txt",
        drops=("a.txt",),
        counts=(0, 0, 1),
    ),
    Edit(
        "two files changed for one another",
        "mv a.txt t; mv data/one.csv a.txt; mv t data/one.csv",
        puts={"a.txt": "1", "data/one.csv": "a"},
        counts=(0, 2, 0),
    ),
    Edit(
        "a directory in the place of a file, and the other way round",
        "rm -r data; echo now > data; rm a.txt; mkdir a.txt; echo in > a.txt/in",
        puts={"data": "now\n", "a.txt/": "", "a.txt/in": "in\n"},
        drops=("data/", "data/one.csv", "data/two.csv", "a.txt"),
        counts=(2, 0, 3),
    ),
    Edit(
        "a directory made anew",
        "rm -r data; mkdir data; echo 3 > data/three.csv",
        puts={"data/three.csv": "3\n"},
        drops=("data/one.csv", "data/two.csv"),
        counts=(1, 0, 2),
    ),
    Edit(
        "links",
        "ln -s nowhere broken; rm link; ln -s run.sh link; rm -r src; ln -s data src",
        puts={"broken": "-> nowhere", "link": "-> run.sh", "src": "-> data"},
        drops=("src/", "src/deep/", "src/deep/x.py"),
        counts=(2, 1, 1),
    ),
    Edit(
        "a link replaced by the file it led to",
        "rm link; cp a.txt link",
        puts={"link": "a"},
        counts=(0, 1, 0),
    ),
    Edit(
        "the executable bit, set and taken away",
        "chmod +x w/edit.txt; chmod -x w/tool",
        puts={"w/edit.txt*": "edit", "w/tool": "tool"},
        drops=("w/edit.txt", "w/tool*"),
        counts=(0, 2, 0),
    ),
    Edit(
        "files touched, written with what they had, and replaced by their like",
        "touch w/edit.txt; cat w/same.txt > t; cat t > w/same.txt; cp a.txt u; mv -f u a.txt; rm t",
    ),
    Edit(
        "a name that is not UTF-8",
        "echo x > $(printf 'caf\\351')",
        puts={os.fsdecode(b"caf\xe9"): "x\n"},
        counts=(1, 0, 0),
    ),
    Edit(
        "a hard link of its own",
        "echo one > first; ln first second",
        puts={"first": "one\n", "second": "one\n"},
        counts=(2, 0, 0),
    ),
    Edit(
        "a directory deep below others",
        f"i=0; p=; while [ $i -lt {_DEEP} ]; do p=${{p}}d/; i=$((i+1)); done; "
        "mkdir -p $p; echo bottom > ${p}b",
        puts={
            **{"d/" * depth: "" for depth in range(1, _DEEP + 1)},
            "d/" * _DEEP + "b": "bottom\n",
        },
        counts=(1, 0, 0),
    ),
    Edit("a FIFO", "mkfifo pipe", skips=("pipe",)),
    Edit(
        "a file that became a FIFO",
        "rm a.txt; mkfifo a.txt",
        drops=("a.txt",),
        counts=(0, 0, 1),
        skips=("a.txt",),
    ),
)

"""What is really mounted where a process lives, from the kernel's own list."""

import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """`root` is the directory within the file system that is shown; see proc(5), mountinfo."""

    root: str
    file_system: str
    options: tuple[str, ...]


def mounts_of(pid: int) -> list[Mount]:
    """Raises OSError where the process is gone, or its mounts are none of our business."""
    found = []
    data = Path(f"/proc/{pid}/mountinfo").read_bytes()
    for line in data.decode(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if len(fields) >= 6 and len(more) >= 3:
            options = tuple(_plain(option) for option in more[2].split(","))
            found.append(Mount(_plain(fields[3]), more[0], options))
    return found


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)

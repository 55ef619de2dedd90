"""What the kernel writes about processes and control groups, parsed. Pure: bytes in, values out.

Lines that are not understood are left out: other kernels write more than these functions know.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_NO_LIMIT_BYTES = 1 << 60
_ESCAPES = {b"\\040": b" ", b"\\011": b"\t", b"\\012": b"\n", b"\\134": b"\\"}


@dataclass(frozen=True, slots=True)
class GroupMount:
    """Where a hierarchy of control groups is mounted, and which of its groups is shown there.

    `controllers` is empty for version 2.
    """

    mount_point: str
    root: str
    version: int
    controllers: tuple[str, ...]


def number(text: bytes | None) -> int | None:
    """A file that holds one number; None for "max" and for what is none."""
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def limit(text: bytes | None) -> int | None:
    """As `number`; None also for the huge value by which version 1 says that there is no limit."""
    value = number(text)
    return None if value is None or value >= _NO_LIMIT_BYTES else value


def pairs(text: bytes | None) -> Mapping[bytes, int]:
    """Lines of `name number`."""
    found: dict[bytes, int] = {}
    for line in (text or b"").splitlines():
        name, _, value = line.partition(b" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def io_stat(text: bytes | None) -> tuple[int, int] | None:
    """Version 2's `io.stat`: bytes read and written, summed over devices."""
    if text is None:
        return None
    totals = {b"rbytes": 0, b"wbytes": 0}
    for word in text.split():
        name, _, value = word.partition(b"=")
        if name in totals and value.isdigit():
            totals[name] += int(value)
    return totals[b"rbytes"], totals[b"wbytes"]


def blkio(text: bytes | None) -> tuple[int, int] | None:
    """Version 1's `blkio.throttle.io_service_bytes*`: lines of `major:minor Read|Write number`."""
    if text is None:
        return None
    totals = {b"Read": 0, b"Write": 0}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in totals and words[2].isdigit():
            totals[words[1]] += int(words[2])
    return totals[b"Read"], totals[b"Write"]


def process_io(text: bytes) -> tuple[int, int]:
    """`/proc/PID/io`: bytes fetched from and dirtied for storage, with those of reaped children."""
    found = pairs(text.replace(b":", b""))
    return found.get(b"read_bytes", 0), found.get(b"write_bytes", 0)


def net_dev(text: bytes | None) -> tuple[int, int] | None:
    """`/proc/PID/net/dev`: bytes received and sent over every interface but the loopback."""
    if text is None:
        return None
    received = sent = 0
    for line in text.splitlines():
        name, colon, counters = line.partition(b":")
        words = counters.split()
        if colon and name.strip() != b"lo" and len(words) >= 9:
            received += number(words[0]) or 0
            sent += number(words[8]) or 0
    return received, sent


def process_groups(text: bytes) -> Mapping[str, str]:
    """`/proc/PID/cgroup`: path by controller; that of version 2 under ""."""
    found: dict[str, str] = {}
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "", "")[:3]
        if path.startswith("/"):
            for controller in controllers.split(","):
                found[controller] = path
    return found


def group_mounts(text: bytes) -> tuple[GroupMount, ...]:
    """Those of `/proc/self/mountinfo` that are hierarchies of control groups."""
    found: list[GroupMount] = []
    for line in text.splitlines():
        before, separator, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 5 or len(rest) < 3:
            continue
        kind, options = rest[0], rest[2].decode("utf-8", "surrogateescape")
        if kind not in (b"cgroup", b"cgroup2"):
            continue
        version = 2 if kind == b"cgroup2" else 1
        controllers = tuple(options.split(",")) if version == 1 else ()
        found.append(GroupMount(_unescaped(fields[4]), _unescaped(fields[3]), version, controllers))
    return tuple(found)


def _unescaped(path: bytes) -> str:
    for escape, meant in _ESCAPES.items():
        path = path.replace(escape, meant)
    return path.decode("utf-8", "surrogateescape")

"""What a kernel shows of processes and control groups, as files in a temporary directory."""

from pathlib import Path

from executord.usage.hierarchy import Hierarchy

NET_DEV = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:  999999    9    0    0    0     0          0         0   999999    9    0    0    0
  eth0:    1500   10    0    0    0     0          0         0      700    5    0    0    0
  eth1:20000 1 0 0 0 0 0 0 3 1 0 0 0
"""


class Host:
    """A /proc and hierarchies of control groups in a temporary directory."""

    def __init__(self, root: Path, *, version: int) -> None:
        self.proc = root / "proc"
        self.groups = root / "cgroup"
        self.version = version
        self.write(self.proc / "self" / "net" / "dev", NET_DEV)
        self.write(self.proc / "1" / "net" / "dev", NET_DEV)
        mounts = [f"1 1 0:1 / {self.groups} rw - cgroup2 cgroup2 rw"]
        if version == 1:
            mounts = [
                f"1 1 0:{at} / {self.groups / name} rw - cgroup cgroup rw,{name}"
                for at, name in enumerate(("cpu", "cpuacct", "memory", "pids", "blkio"))
            ]
        self.write(self.proc / "self" / "mountinfo", "\n".join(mounts).encode())

    def write(self, path: Path, text: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)

    def group(self, path: str, **files: bytes) -> None:
        """Names with `__` for a dot; with version 1 the first word is the hierarchy."""
        for name, text in files.items():
            file = name.replace("__", ".")
            hierarchy = file.split(".")[0] if self.version == 1 else ""
            self.write(self.groups / hierarchy / path / file, text)

    def process(self, pid: int, group: str, *, io: bytes = b"", net: bytes = NET_DEV) -> None:
        lines = [f"0::/{group}"]
        if self.version == 1:
            names_v1 = ("cpu", "cpuacct", "memory", "pids", "blkio")
            lines = [f"{at}:{name}:/{group}" for at, name in enumerate(names_v1, 1)]
        self.write(self.proc / str(pid) / "cgroup", "\n".join(lines).encode())
        self.write(self.proc / str(pid) / "net" / "dev", net)
        if io:
            self.write(self.proc / str(pid) / "io", io)

    def hierarchy(self) -> Hierarchy:
        return Hierarchy.read(version=self.version, proc=self.proc)

"""Keeping the cache within its limits: which victims, at what price, and whom it holds up.

Victims: recorded-like traces (`cache_traces`) replayed with plain LRU and with ours. Deletion:
warm Preparing while the deletion of a large snapshot is under way, beside the same without. Size:
a start with very many blobs, and mark and sweep over very many references.
"""

import asyncio
import hashlib
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from executord.core.cache_simulation import Trace, bound, simulate
from executord.files.cache.blobs import Blobs
from executord.files.cache.grounds import About, Ground
from executord.files.cache.inventory import Held, take_inventory
from executord.files.cache.layout import Layout
from executord.files.client.push import push_directory
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import Progress
from tests.bench.cache_traces import GENERATORS
from tests.bench.table import Row
from tests.fakes.files import FakeVolumes

SHARES = (0.1, 0.25, 0.5)
SEEDS = (1, 2, 3)
MOST_DELAY = 1.1
START_SECONDS = 5.0
SWEEP_SECONDS = 10.0
SWEEP_MIB = 200.0


def run(*, quick: bool) -> list[Row]:
    rows = _victims(seeds=SEEDS[:1] if quick else SEEDS)
    rows += asyncio.run(_deleting(files=5_000 if quick else 100_000, rounds=10 if quick else 200))
    rows += _start(blobs=20_000 if quick else 1_000_000)
    rows += _marking(grounds=20, links=5_000 if quick else 100_000)
    return rows


# -- which victims -------------------------------------------------------------------------------


def _victims(seeds: tuple[int, ...]) -> list[Row]:
    rows = []
    for name, generate in GENERATORS.items():
        ours: dict[float, float] = dict.fromkeys(SHARES, 0.0)
        lru, least = dict(ours), dict(ours)
        for seed in seeds:
            trace = Trace(generate(seed))
            for share in SHARES:
                size = int(trace.bytes * share)
                ours[share] += simulate(trace, size_bytes=size, policy="worth").seconds
                lru[share] += simulate(trace, size_bytes=size, policy="lru").seconds
                least[share] += bound(trace, size_bytes=size).seconds
        rows += [
            Row(
                name=f"cost of misses, {name}, {share:.0%} cached (bound {least[share]:,.0f})",
                figure=ours[share],
                unit="s",
                peer="LRU",
                peer_figure=lru[share],
                ratio=ours[share] / lru[share],
                aim="≤ 1 of LRU",
                met=ours[share] <= lru[share],
            )
            for share in SHARES
        ]
    return rows


# -- deletion under way --------------------------------------------------------------------------


async def _deleting(*, files: int, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        root = Path(text)
        (root / "store").mkdir()
        store = Store.open(f"file://{root}/store", {})
        small = _project(root / "small", 1000)
        revision = push_directory(store, small, "bench", cache_home=root / "h").revision
        cache = ProjectFiles(
            state_dir=root / "state",
            instance="0123abcd",
            store_url=store.url,
            store_options={},
            volumes=FakeVolumes(),
            user=(os.geteuid(), os.getegid()),
            max_size_bytes=1 << 40,
            low_watermark=0.8,
            high_watermark=0.9,
            min_free_bytes=0,
        )
        await cache.open()
        try:
            await cache.prepare("first", revision, _ignore)
            with_it: list[float] = []
            without: list[float] = []
            trash = root / "state/trash"
            while len(with_it) < rounds:
                without += await _warm(cache, revision, rounds // 10, lambda: True)
                await asyncio.to_thread(_thrown_away, root, trash, files)
                cache._parts.wake()
                await asyncio.sleep(0.05)
                while len(with_it) < rounds and any(trash.glob("*/*")):
                    with_it += await _warm(cache, revision, 5, lambda: any(trash.iterdir()))
                    await asyncio.sleep(0.02)
            without += await _warm(cache, revision, rounds // 10, lambda: True)
        finally:
            await cache.close()
    idle, busy = statistics.median(without) * 1000, statistics.median(with_it) * 1000
    worst_idle, worst_busy = _p90(without) * 1000, _p90(with_it) * 1000
    return [
        Row(
            name=f"warm Preparing while {files:,} files are deleted",
            figure=busy,
            unit="ms",
            peer="nothing deleted",
            peer_figure=idle,
            ratio=busy / idle,
            aim=f"≤ {MOST_DELAY:g}",
            met=busy <= MOST_DELAY * idle,
        ),
        Row(
            name="the same, 90th percentile",
            figure=worst_busy,
            unit="ms",
            peer="nothing deleted",
            peer_figure=worst_idle,
            ratio=worst_busy / worst_idle,
        ),
    ]


async def _warm(
    cache: ProjectFiles, revision: str, rounds: int, goes_on: Callable[[], bool]
) -> list[float]:
    taken = []
    for number in range(max(rounds, 1)):
        if not goes_on():
            break
        began = time.perf_counter()
        await cache.prepare(f"warm-{number}", revision, _ignore)
        taken.append(time.perf_counter() - began)
        await cache.discard(f"warm-{number}", keep_workspace=False)
    return taken


def _thrown_away(root: Path, trash: Path, files: int) -> None:
    made = _project(root / "large", files)
    os.sync()
    made.rename(trash / "large")


def _p90(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.9)]


def _project(root: Path, files: int) -> Path:
    for number in range(files):
        if number % 100 == 0:
            folder = root / f"d{number // 100}"
            folder.mkdir(parents=True)
        (folder / f"f{number}").write_bytes(b"%d" % number)
    return root


# -- very many -----------------------------------------------------------------------------------

_OPEN = """
import asyncio, sys, time
from pathlib import Path
from tests.fakes.files import project_files
async def main():
    files = project_files(Path(sys.argv[1]), "file:///nowhere")
    began = time.perf_counter()
    await files.open()
    taken = time.perf_counter() - began
    await files.close()
    print(taken)
asyncio.run(main())
"""


def _start(*, blobs: int) -> list[Row]:
    """A fresh process each; the first one finds nothing but blobs, and counts in the background."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        state = Path(text) / "state"
        _many_blobs(state, blobs)
        taken = []
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", _OPEN, str(state)],
                check=True,
                capture_output=True,
                text=True,
            )
            taken.append(float(done.stdout.split()[-1]))
        began = time.perf_counter()
        stores = Blobs(Layout(state), (os.geteuid(), os.getegid()))
        stores.count_all()
        counting = time.perf_counter() - began
        shutil.rmtree(state)
    seconds = statistics.median(taken)
    return [
        Row(
            name=f"start of the cache with {blobs:,} blobs",
            figure=seconds,
            unit="s",
            peer="counting them all",
            peer_figure=counting,
            ratio=seconds / counting,
            aim=f"≤ {START_SECONDS:g} s",
            met=seconds <= START_SECONDS,
        )
    ]


def _many_blobs(state: Path, count: int) -> None:
    layout = Layout(state)
    layout.make()
    for shard in range(256):
        (layout.blobs / f"{shard:02x}").mkdir(mode=0o700)
    for number in range(count):
        name = hashlib.sha256(b"%d" % number).hexdigest()
        os.close(os.open(f"{layout.blobs}/{name[:2]}/{name}", os.O_CREAT | os.O_WRONLY, 0o644))


def _marking(*, grounds: int, links: int) -> list[Row]:
    """Grounds that share nine tenths of their blobs with the next one, as edits do."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        root = Path(text)
        for number in range(grounds):
            _write_records(root, number, links)
        done = subprocess.run(
            [sys.executable, "-c", _MARK, text, str(grounds), str(links)],
            check=True,
            capture_output=True,
            text=True,
        )
    taken, mib = map(float, done.stdout.split()[-2:])
    return [
        Row(
            name=f"mark over {grounds * links:,} references",
            figure=taken,
            unit="s",
            aim=f"≤ {SWEEP_SECONDS:g} s",
            met=taken <= SWEEP_SECONDS,
        ),
        Row(
            name="the same, memory on top",
            figure=mib,
            unit="MiB",
            aim=f"≤ {SWEEP_MIB:g} MiB",
            met=mib <= SWEEP_MIB,
        ),
    ]


_MARK = """
import sys
from pathlib import Path
from tests.bench.evicting import mark
print(*mark(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
"""


def mark(root: Path, grounds: int, links: int) -> tuple[float, float]:
    """In a fresh process: seconds, and by how many MiB its peak has grown."""
    held = [_held(root, number, links) for number in range(grounds)]
    layout = Layout(root / "state")
    layout.make()
    blobs = Blobs(layout, (os.geteuid(), os.getegid()))
    blobs.load()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: see proc(5)
    before = _peak_mib()
    began = time.perf_counter()
    take_inventory(held, blobs, seconds_per_file=1e-4, seconds_per_byte=1e-9)
    taken = time.perf_counter() - began
    return taken, _peak_mib() - before


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(peak.split()[1]) / 1024


def _write_records(root: Path, number: int, links: int) -> None:
    first = number * links // 10
    names = sorted(hashlib.sha256(b"%d" % blob).digest() for blob in range(first, first + links))
    record = struct.Struct(">32s?Q")
    data = b"".join(record.pack(name, False, 5000) for name in names)
    (root / f"records-{number}").write_bytes(data)


def _held(root: Path, number: int, links: int) -> Held:
    about = About(
        files=links,
        bytes=links * 5000,
        directories=1,
        own_bytes=4096,
        made_at=0.0,
        made_in_seconds=1.0,
        records=2,
    )
    return Held(
        ground=Ground("snapshot", f"sha256:{number:064x}"),
        about=about,
        records=root / f"records-{number}",
        last_used=float(number),
        own_bytes=4096,
        own_inodes=1,
        uses=1.0,
    )


def _ignore(_: Progress) -> None:
    pass

"""Warm Preparing of a project, beside other tools that put the same tree into a fresh directory.

Ours is all of `prepare` but the engine's own time for the volume, which is told apart. The tools
take turns on the same filesystem; what a turn leaves is deleted before the next one, untimed.
"""

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.bench import caches, checkouts, projects
from tests.bench.table import Row

AIM_MS = 5.0
_PROJECTS: dict[str, Callable[..., Path]] = {
    "S": projects.make_s,
    "M": projects.make_m,
    "L": projects.make_l,
}
_ONLY_COPIES = {"cp -al", "cp -a"}


def run(*, quick: bool) -> list[Row]:
    rows: list[Row] = []
    for name in _PROJECTS:
        rows += asyncio.run(_measure(name, quick=quick, rounds=2 if quick else 5))
    return rows


async def _measure(name: str, *, quick: bool, rounds: int) -> list[Row]:
    taken: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="executord-bench-") as text:
        root = Path(text)
        project = await asyncio.to_thread(_PROJECTS[name], root / "project", quick=quick)
        store = caches.new_store(root / "store")
        pushed = await asyncio.to_thread(caches.push, store, project)
        peers = _peers(name)
        for peer in peers:
            await asyncio.to_thread(peer.take_in, project, root / _folder(peer))
        async with caches.file_cache(root / "state", store) as (cache, volumes):
            await cache.prepare("cold", pushed.revision, caches.ignore)
            for number in range(rounds):
                run_id = f"warm-{number}"
                volumes.seconds = 0.0
                began = time.perf_counter()
                prepared = await cache.prepare(run_id, pushed.revision, caches.ignore)
                taken["ours"].append((time.perf_counter() - began - volumes.seconds) * 1000)
                taken["engine"].append(volumes.seconds * 1000)
                assert prepared.workspace.way == "snapshot", prepared.workspace.way
                await cache.discard(run_id, keep_workspace=False)
                for peer in peers:
                    spent = await asyncio.to_thread(
                        peer.timed_ms, project, root / _folder(peer), root / "target"
                    )
                    taken[peer.name].append(spent)
            await cache.discard("cold", keep_workspace=False)
    medians = {key: statistics.median(values) for key, values in taken.items()}
    return _rows(f"warm Preparing, {name}", medians)


def _peers(name: str) -> list[checkouts.Checkout]:
    """Copies of 4 GiB by every tool would tell nothing that two of them do not."""
    here = checkouts.available()
    return [peer for peer in here if name != "L" or peer.name in _ONLY_COPIES]


def _folder(peer: checkouts.Checkout) -> str:
    return "home-" + "-".join(word.strip("-,") for word in peer.name.split())


def _rows(name: str, medians: dict[str, float]) -> list[Row]:
    ours, engine = medians.pop("ours"), medians.pop("engine")
    rows = [Row(name=f"{name}: the engine's share", figure=engine, unit="ms")]
    for peer, taken in medians.items():
        rows.append(
            Row(
                name=name,
                figure=ours,
                unit="ms",
                peer=peer,
                peer_figure=taken,
                ratio=ours / taken,
                aim=f"at most {AIM_MS:g} ms",
                met=ours <= AIM_MS,
            )
        )
    return rows

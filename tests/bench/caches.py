"""A file cache to measure, on the real engine or beside it."""

import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from executord.engine.docker import DockerEngine
from executord.files.client.push import Pushed, push_directory
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import Progress


class TimedVolumes:
    """The engine's volumes, with the time that the engine itself takes for them."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self.seconds = 0.0

    async def create_overlay_volume(
        self,
        name: str,
        *,
        lower: Sequence[Path],
        upper: Path,
        work: Path,
        labels: Mapping[str, str],
    ) -> None:
        began = time.perf_counter()
        await self._engine.create_overlay_volume(
            name, lower=lower, upper=upper, work=work, labels=labels
        )
        self.seconds += time.perf_counter() - began

    async def remove_volume(self, name: str) -> None:
        await self._engine.remove_volume(name)


def new_store(root: Path) -> Store:
    root.mkdir(parents=True)
    return Store.open(f"file://{root}", {})


def push(store: Store, project: Path) -> Pushed:
    return push_directory(store, project, "bench", cache_home=project.parent / "hashes")


@asynccontextmanager
async def file_cache(
    state: Path, store: Store, **settings: Any
) -> AsyncIterator[tuple[ProjectFiles, TimedVolumes]]:
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    engine = DockerEngine(url=url, deadline_seconds=30.0)
    await engine.open()
    volumes = TimedVolumes(engine)
    files = ProjectFiles(
        **{
            "state_dir": state,
            "instance": secrets.token_hex(4),
            "store_url": store.url,
            "store_options": {},
            "volumes": volumes,
            "user": (1000, 1000),
            "max_size_bytes": 1 << 40,
            "low_watermark": 0.8,
            "high_watermark": 0.9,
            "min_free_bytes": 0,
            **settings,
        }
    )
    await files.open()
    try:
        yield files, volumes
    finally:
        await files.close()
        await engine.close()


def ignore(_: Progress) -> None:
    """Nobody looks at the progress of a benchmark."""

"""Projects, stores and file caches for tests, in directories of their own."""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from executord.core.run import Assignment, Environment, Evidence, Run, Workspace
from executord.core.states import State
from executord.files.client.push import Pushed, push_directory
from executord.files.project_files import ProjectFiles
from executord.files.store.store import Store
from executord.ports import Progress

GIBIBYTE = 1 << 30
USER = (os.geteuid(), os.getegid())


class FakeVolumes:
    """Remembers what the engine was asked for. `refuses` makes it fail."""

    def __init__(self) -> None:
        self.volumes: dict[str, dict[str, Any]] = {}
        self.refuses: Exception | None = None

    async def create_overlay_volume(
        self,
        name: str,
        *,
        lower: Sequence[Path],
        upper: Path,
        work: Path,
        labels: Mapping[str, str],
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.volumes[name] = {"lower": lower, "upper": upper, "work": work, "labels": labels}

    async def create_bind_volume(
        self, name: str, *, directory: Path, labels: Mapping[str, str]
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.volumes[name] = {"directory": directory, "labels": labels}

    async def create_read_only_volume(
        self, name: str, *, lower: Sequence[Path], labels: Mapping[str, str]
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.volumes[name] = {"lower": tuple(lower), "labels": labels}

    async def remove_volume(self, name: str) -> None:
        self.volumes.pop(name, None)


def write_files(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Make a directory with these contents; a name that ends in a slash is an empty directory."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def contents(root: Path) -> dict[str, str]:
    """Every path below with what it is: text of a file, `-> target`, or a slash for a folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[f"{name}/"] = ""
        else:
            found[name] = path.read_bytes().decode(errors="surrogateescape")
    return found


def new_store(root: Path) -> Store:
    root.mkdir(parents=True, exist_ok=True)
    return Store.open(f"file://{root}", {})


def push(store: Store, directory: Path, project: str = "alice/churn") -> Pushed:
    return push_directory(
        store, directory, project, author="alice", cache_home=directory.parent / "hashes"
    )


def project_files(state: Path, store: Store | str, **changes: Any) -> ProjectFiles:
    settings: dict[str, Any] = {
        "state_dir": state,
        "instance": "0123abcd",
        "store_url": store if isinstance(store, str) else store.url,
        "store_options": {},
        "volumes": FakeVolumes(),
        "user": USER,
        "max_size_bytes": 100 * GIBIBYTE,
        "low_watermark": 0.8,
        "high_watermark": 0.9,
        "min_free_bytes": 0,
        "store_patience_seconds": 0.0,
    }
    return ProjectFiles(**{**settings, **changes})


@asynccontextmanager
async def opened(state: Path, store: Store | str, **changes: Any) -> AsyncIterator[ProjectFiles]:
    files = project_files(state, store, **changes)
    await files.open()
    try:
        yield files
    finally:
        await files.close()


def ended_run(
    run_id: str, workspace: Workspace, *, project: str = "alice/churn", finished_at: float = 1000.0
) -> Run:
    """A run whose container has ended, as Finishing gets it."""
    return Run(
        assignment=Assignment(
            id=run_id,
            project=project,
            command=("true",),
            environment=Environment(image="i"),
            tier="small",
            number=7,
            started_by="alice",
            revision=workspace.base_revision,
        ),
        state=State.FINISHING,
        accepted_at=900.0,
        state_since=1000.5,
        workspace=workspace,
        evidence=Evidence(exit_code=0, finished_at=finished_at),
    )


def ignore_progress(_: Progress) -> None:
    """For callers who do not look."""


def whiteout(path: Path) -> None:
    """What overlayfs leaves in the upper directory for a deleted file."""
    os.mknod(path, 0o020000, os.makedev(0, 0))


def opaque(path: Path) -> None:
    """What overlayfs leaves for a directory that replaced another."""
    path.mkdir(parents=True)
    os.setxattr(path, "user.overlay.opaque", b"y")

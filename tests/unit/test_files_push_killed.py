"""A client's push that is killed, or refused the disk, at each of its effects on it.

What the store shows is whole, the head is the old one or the new one, and the same push again ends
as it would have at once.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executord.core.reasons import Reason
from executord.files.client.pull import pull_revision
from executord.files.client.push import Pushed
from executord.files.store.pack_index import PackIndex
from executord.files.store.store import Store
from tests.fakes.files import contents, new_store, push, write_files
from tests.fakes.files_worker import KILLED, Outcome, Worker

PLACES = int(os.environ.get("EXECUTORD_STEPS", "15"))
FIRST = {"a": "a", "b/c": "c"}
MANY = {f"d{n % 40}/f{n}": f"{n}" * 20 for n in range(200)}

pytestmark = pytest.mark.timeout(240)


@dataclass
class Scene:
    """A project of which one revision was pushed, and which has many new files since."""

    root: Path
    worker: Worker
    first: Pushed

    def push(self, **details: object) -> Outcome:
        self.forget()
        return self.again(**details)

    def again(self, **details: object) -> Outcome:
        return self.worker.do(
            "push",
            self.root / "s",
            self.root / "store",
            project=str(self.root / "project"),
            **details,
        )

    def forget(self) -> None:
        for name in ("s", "store"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        subprocess.run(["cp", "-a", self.root / "before", self.root / "store"], check=True)

    def pulled(self, revision: str) -> dict[str, str]:
        target = self.root / "out"
        pull_revision(Store.open(f"file://{self.root}/store", {}), revision, target)
        found = contents(target)
        shutil.rmtree(target)
        return found


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def scene(tmp_path: Path, worker: Worker) -> Scene:
    store = new_store(tmp_path / "store")
    first = push(store, write_files(tmp_path / "project", FIRST))
    (tmp_path / "store").rename(tmp_path / "before")
    write_files(tmp_path / "project", MANY | {"a": "changed"})
    return Scene(tmp_path, worker, first)


def test_killed_anywhere_the_store_is_whole_and_the_same_push_ends_well(scene: Scene) -> None:
    effects = scene.push().effects
    assert effects > 50
    for at in _spread(effects):
        assert scene.push(at=at).status == KILLED
        _everything_visible_is_whole(scene.root / "store")
        head = Store.open(f"file://{scene.root}/store", {}).head("alice/churn")
        if head == scene.first.revision:
            assert scene.pulled(head) == {"a": "a", "b/": "", "b/c": "c"}, at
        else:
            assert scene.pulled(head) == contents(scene.root / "project"), at
        again = scene.again()
        assert again.head in {"moved", "unchanged"}, at
        assert scene.pulled("alice/churn") == contents(scene.root / "project"), at
        _everything_visible_is_whole(scene.root / "store")


def test_refused_anywhere_it_says_so_and_works_once_there_is_room(scene: Scene) -> None:
    effects = scene.push().effects
    for at in _spread(effects):
        refused = scene.push(at=at, kill=False, again=True)
        assert refused.reason in {"", Reason.STORE_UNAVAILABLE}, at
        assert refused.head in {"moved", "unchanged"}, at
        assert scene.pulled("alice/churn") == contents(scene.root / "project"), at
        _everything_visible_is_whole(scene.root / "store")


def _spread(effects: int) -> list[int]:
    """Which of them; the first and the last few, and some between."""
    if not PLACES or effects <= PLACES:
        return list(range(1, effects + 1))
    ends = {1, 2, 3, *range(effects - 8, effects + 1)}
    return sorted(ends | {1 + n * effects // PLACES for n in range(PLACES)})


def _everything_visible_is_whole(store: Path) -> None:
    for folder in ("blobs", "trees", "revisions", "packs/data"):
        for path in (store / folder).rglob("?" * 64):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    for path in (store / "packs/index").glob("?" * 64):
        index = PackIndex(path.read_bytes())
        data = store / "packs/data" / path.name[:2] / path.name
        assert data.stat().st_size == index.pack_size

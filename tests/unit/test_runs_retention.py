"""Old runs are forgotten, but for those whose files are on the node alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executord.core.reasons import Fault, Reason
from executord.core.refusals import RefusedError
from executord.runs.retention import Retention
from tests.unit.test_runs import Node


class Later:
    """A clock that is a year ahead."""

    def now(self) -> float:
        return 4e9

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.start()
    yield node
    await node.manager.leave()
    await node.engine.close()


async def test_a_run_whose_files_are_kept_is_not_forgotten_until_they_are_stored(
    node: Node,
) -> None:
    node.files.keeping.fault = Fault(Reason.STORE_UNAVAILABLE, "It is away.")
    kept = await node.ended((await node.submit("work")).id)
    node.files.keeping.fault = None
    stored = await node.ended((await node.submit("work")).id)
    await node.journal.mark_delivered([t.seq for t in await node.journal.undelivered(100)])
    retention = Retention(
        journal=node.journal,
        consoles=node.consoles,
        clock=Later(),
        files=node.files,
        runs_days=30,
        events_days=30,
    )
    await retention.sweep()
    with pytest.raises(RefusedError):
        await node.manager.run(stored.id)
    assert (await node.manager.run(kept.id)).keeps_workspace
    await node.manager.sync(kept.id)
    await retention.sweep()
    with pytest.raises(RefusedError):
        await node.manager.run(kept.id)

"""What the node tells about itself, put together from what is fixed and what is now."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from executord.core.admission import Ledger, Waiting
from executord.ports import EngineFacts, WorkspaceModes
from executord.runs.context import RunRules
from executord.runs.node import NodeState, TierState


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What does not change while the daemon lives. `start` tells this start from the others."""

    start: str
    version: str
    started_at: float
    store_url: str
    engine: EngineFacts | None
    workspaces: WorkspaceModes | None = None


def node_state(
    facts: NodeFacts,
    rules: RunRules,
    ledger: Ledger,
    queue: Iterable[Waiting],
    *,
    why_not: str,
) -> NodeState:
    waiting = Counter(each.tier for each in queue)
    holding = ledger.runs_by_tier()
    promised = ledger.total_promised()
    tiers = tuple(
        TierState(
            name=tier.name,
            cpus=tier.cpus,
            memory_bytes=tier.memory_bytes,
            gpus=tier.gpus,
            max_runs=tier.max_runs,
            promised_runs=holding.get(tier.name, 0),
            queued_runs=waiting.get(tier.name, 0),
        )
        for tier in ledger.tiers.values()
    )
    return NodeState(
        name=rules.node,
        instance=facts.start,
        version=facts.version,
        started_at=facts.started_at,
        accepting=not why_not,
        why_not=why_not,
        queued=sum(waiting.values()),
        running=len(ledger.promised),
        max_queue=rules.max_queue,
        cpus=ledger.host.cpus,
        memory_bytes=ledger.host.memory_bytes,
        gpus=ledger.host.gpus,
        promised_cpus=promised.cpus,
        promised_memory_bytes=promised.memory_bytes,
        promised_gpus=promised.gpus,
        tiers=tiers,
        store_url=facts.store_url,
        working_dir=rules.working_dir,
        engine=facts.engine,
        workspaces=facts.workspaces,
    )

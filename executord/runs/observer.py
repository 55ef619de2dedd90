"""What has to be told when runs change: metrics, and a last line for the log."""

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from executord.core.run import Run, StageCost, Transition
from executord.ports import Journal, UsageSample

log = structlog.get_logger(__name__)


class TransitionMetrics(Protocol):
    def transition(self, transition: Transition) -> None: ...
    def costs(self, costs: Sequence[StageCost]) -> None: ...


class Observer:
    """`restore_samples` reads what the journal keeps of an ended run's usage."""

    def __init__(
        self,
        *,
        journal: Journal,
        metrics: TransitionMetrics,
        restore_samples: Callable[[object], Sequence[UsageSample]],
    ) -> None:
        self._journal = journal
        self._metrics = metrics
        self._restore_samples = restore_samples

    def changed(self, transitions: Sequence[Transition]) -> None:
        for transition in transitions:
            self._metrics.transition(transition)

    def ended(self, run: Run) -> None:
        """One line that tells the run's whole story; its last cost comes after its last state."""
        self._metrics.costs(run.pending_costs)
        log.info(
            "run.ended",
            run_id=run.id,
            project=run.assignment.project,
            tier=run.assignment.tier,
            state=run.state,
            reason=run.reason,
            detail=run.fault.detail if run.fault else "",
            exit_code=run.evidence.exit_code if run.evidence else None,
            seconds={cost.stage.value: round(cost.seconds, 4) for cost in run.costs},
            revision=run.result.revision if run.result else "",
            attempt=run.attempt,
        )

    async def kept_samples(self, run_id: str, since: float) -> Sequence[UsageSample]:
        kept = await self._journal.fact("usage", run_id)
        if kept is None:
            return ()
        return [sample for sample in self._restore_samples(kept) if sample.time > since]

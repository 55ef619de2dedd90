from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from executord.core.reasons import Reason
from executord.core.run import Stage, StageCost, Transition
from executord.core.states import State
from executord.ports import HostUsage, OutboxState
from executord.usage.host import HostMeter
from executord.usage.metrics import Metrics


def shown(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def went(run_id: str, before: State | None, after: State, **fields: object) -> Transition:
    made: dict[str, object] = {"number": 1, "time": 1.0, **fields}
    return Transition(run_id=run_id, from_state=before, to_state=after, **made)  # type: ignore[arg-type]


def test_ends_are_counted_by_state_and_reason() -> None:
    metrics = Metrics(version="1.2.3")
    for _ in range(2):
        metrics.transition(went("r", State.FINISHING, State.FAILED, reason=Reason.EXIT_CODE))
    figures = shown(metrics)
    labels = (("reason", "exit_code"), ("state", "Failed"))
    assert figures["executord_runs_ended_total", labels] == 2
    assert figures["executord_build_info", (("version", "1.2.3"),)] == 1


def test_runs_that_live_are_counted_by_state_and_never_below_zero() -> None:
    metrics = Metrics(version="1")
    metrics.transition(went("r-1", None, State.QUEUED))
    metrics.transition(went("r-2", None, State.QUEUED))
    metrics.transition(went("r-2", State.QUEUED, State.SCHEDULED))
    metrics.transition(went("adopted", State.RUNNING, State.FINISHING))
    figures = shown(metrics)
    live = {
        labels[0][1]: value
        for (name, labels), value in figures.items()
        if name == "executord_runs" and value
    }
    assert live == {"Queued": 1, "Scheduled": 1, "Finishing": 1}
    metrics.set_live({State.RUNNING: 5})
    metrics.transition(went("r-1", State.QUEUED, State.SCHEDULED))
    figures = shown(metrics)
    assert figures["executord_runs", (("state", "Running"),)] == 5
    assert figures["executord_runs", (("state", "Queued"),)] == 0
    assert figures["executord_runs", (("state", "Scheduled"),)] == 1


def test_an_ended_adopted_run_does_not_upset_the_count() -> None:
    metrics = Metrics(version="1")
    metrics.transition(went("old", State.STOPPING, State.STOPPED))
    assert all(v >= 0 for (name, _), v in shown(metrics).items() if name == "executord_runs")


def test_what_stages_cost_is_summed_by_source() -> None:
    metrics = Metrics(version="1")
    cost = StageCost(stage=Stage.PREPARE, seconds=0.01, bytes_from_cache=100, bytes_fetched=7)
    metrics.transition(went("r", State.PREPARING, State.RUNNING, costs=(cost, cost)))
    figures = shown(metrics)
    assert figures["executord_stage_bytes_total", (("source", "cache"), ("stage", "prepare"))] == (
        200
    )
    assert figures[
        "executord_stage_bytes_total", (("source", "fetched"), ("stage", "prepare"))
    ] == (14)
    assert (
        "executord_stage_bytes_total",
        (("source", "sent"), ("stage", "prepare")),
    ) not in figures
    assert figures["executord_stage_seconds_count", (("stage", "prepare"),)] == 2


def test_what_nobody_has_told_is_not_shown_as_zero() -> None:
    metrics = Metrics(version="1")
    assert not any(name.startswith("executord_host") for name, _ in shown(metrics))
    metrics.set_host(
        HostUsage(
            time=1,
            cpus=2,
            cpu_cores_used=0.5,
            load_1m=0.1,
            memory_total_bytes=8,
            memory_available_bytes=4,
            disk_total_bytes=100,
            disk_free_bytes=50,
        )
    )
    metrics.set_outbox(OutboxState(pending=3, oldest_time=None, parked_runs=("r",)))
    figures = shown(metrics)
    assert figures["executord_host_memory_available_bytes", ()] == 4
    assert figures["executord_outbox_pending", ()] == 3
    assert figures["executord_outbox_parked_runs", ()] == 1


def test_damage_is_counted_as_far_as_it_was_told() -> None:
    metrics = Metrics(version="1")
    for damaged, mended in ((2, 0), (2, 1), (3, 1)):
        metrics.set_damage(damaged=damaged, mended=mended)
    figures = shown(metrics)
    assert figures["executord_cache_damaged_total", ()] == 3
    assert figures["executord_cache_mended_total", ()] == 1


def test_two_daemons_in_one_process_do_not_share_figures() -> None:
    one, other = Metrics(version="1"), Metrics(version="1")
    one.transition(went("r", None, State.QUEUED))
    assert shown(one) != shown(other)


def test_the_hosts_figures_make_sense() -> None:
    meter = HostMeter(Path("/"))
    meter.read()
    host = meter.read()
    assert 0 <= host.cpu_cores_used <= host.cpus
    assert 0 < host.memory_available_bytes < host.memory_total_bytes
    assert 0 < host.disk_free_bytes <= host.disk_total_bytes

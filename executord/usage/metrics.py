"""Figures for Prometheus. Labels come from closed lists only, so that their number is bounded."""

from collections import Counter
from collections.abc import Mapping, Sequence

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from executord.core.run import Stage, StageCost, Transition
from executord.core.states import TERMINAL, State
from executord.ports import CacheReport, HostUsage, OutboxState

_STAGE_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200, 28800)
_LIVE = tuple(state for state in State if state not in TERMINAL)


class Metrics:
    """Owned by the event loop. `version` is the daemon's own."""

    def __init__(self, *, version: str) -> None:
        self._registry = CollectorRegistry()
        self._ended = prometheus.Counter(
            "executord_runs_ended",
            "Runs that ended, by state and reason.",
            ("state", "reason"),
            registry=self._registry,
        )
        self._live = Gauge(
            "executord_runs", "Runs that have not ended.", ("state",), registry=self._registry
        )
        self._stage_seconds = Histogram(
            "executord_stage_seconds",
            "Wall time of each stage of a run.",
            ("stage",),
            buckets=_STAGE_SECONDS,
            registry=self._registry,
        )
        self._stage_bytes = prometheus.Counter(
            "executord_stage_bytes",
            "Bytes a stage took from the cache, fetched, or sent.",
            ("stage", "source"),
            registry=self._registry,
        )
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, prometheus.Counter] = {}
        self._told: dict[tuple[str, str], float] = {}
        self._counts: Counter[State] = Counter()
        self._build = Gauge(
            "executord_build_info",
            "Always 1; the version is in the label.",
            ("version",),
            registry=self._registry,
        )
        self._build.labels(version).set(1)
        self._show_live()
        for stage in Stage:
            self._stage_seconds.labels(stage.value)

    def transition(self, transition: Transition) -> None:
        if transition.to_state.is_terminal:
            reason = transition.reason.value if transition.reason is not None else ""
            self._ended.labels(transition.to_state.value, reason).inc()
        before, after = transition.from_state, transition.to_state
        if before is not None and self._counts[before] > 0:
            self._counts[before] -= 1
        self._counts[after] += 1
        self._show_live()
        self.costs(transition.costs)

    def costs(self, costs: Sequence[StageCost]) -> None:
        """What stages cost; each is told once."""
        for cost in costs:
            self._stage_seconds.labels(cost.stage.value).observe(max(0.0, cost.seconds))
            amounts = {
                "cache": cost.bytes_from_cache,
                "fetched": cost.bytes_fetched,
                "sent": cost.bytes_sent,
            }
            for source, count in amounts.items():
                if count > 0:
                    self._stage_bytes.labels(cost.stage.value, source).inc(count)

    def set_live(self, counts: Mapping[State, int]) -> None:
        """How many runs are in each live state; what is not named is 0. Transitions count on from
        there: to be told again now and then, since they are not told of runs that were taken up
        from the journal.
        """
        self._counts = Counter(counts)
        self._show_live()

    def set_outbox(self, outbox: OutboxState) -> None:
        self._set("outbox_pending", "Transitions not yet delivered upstream.", outbox.pending)
        self._set(
            "outbox_oldest_timestamp_seconds",
            "When the oldest transition not yet delivered happened; 0 when there is none.",
            outbox.oldest_time or 0.0,
        )
        parked = len(outbox.parked_runs)
        self._set("outbox_parked_runs", "Runs whose transitions upstream refused.", parked)

    def set_host(self, host: HostUsage) -> None:
        self._set("host_cpus", "Cores of the host.", host.cpus)
        self._set("host_cpu_used_cores", "Cores in use.", host.cpu_cores_used)
        self._set("host_load1", "Load average over one minute.", host.load_1m)
        self._set("host_memory_bytes", "Memory of the host.", host.memory_total_bytes)
        self._set(
            "host_memory_available_bytes",
            "Memory that can still be used.",
            host.memory_available_bytes,
        )
        self._set("host_disk_bytes", "Size of the state disk.", host.disk_total_bytes)
        self._set("host_disk_free_bytes", "Free on the state disk.", host.disk_free_bytes)

    def set_cache(self, cache: CacheReport) -> None:
        """What the file cache holds, what runs found in it, and what was evicted."""
        for kind, use in cache.kinds.items():
            self._set_by("cache_bytes", "On disk, by kind.", "kind", kind, use.bytes)
            self._set_by("cache_inodes", "On disk, by kind.", "kind", kind, use.inodes)
            self._set_by("cache_entries", "Things held, by kind.", "kind", kind, use.entries)
        self._set("cache_limit_bytes", "The most the cache may hold.", cache.limits.max_bytes)
        self._set("cache_saved_bytes", "What sharing saves.", cache.saved_bytes)
        free = cache.limits.disk_free_inodes
        if free is not None:
            self._set("cache_disk_free_inodes", "Free on the cache's disk.", free)
        asked = cache.since_start
        for result, runs, files, size in (
            ("hit", asked.hit_runs, asked.hit_files, asked.hit_bytes),
            ("miss", asked.missed_runs, asked.missed_files, asked.missed_bytes),
        ):
            told = "Since the daemon started."
            self._count_to("cache_requested_runs", told, "result", result, runs)
            self._count_to("cache_requested_files", told, "result", result, files)
            self._count_to("cache_requested_bytes", told, "result", result, size)
        for each in cache.evictions:
            told = "Evicted since the cache was made."
            self._count_to("cache_evicted_entries", told, "trigger", each.trigger, each.entries)
            self._count_to("cache_evicted_bytes", told, "trigger", each.trigger, each.bytes)

    def set_damage(self, *, damaged: int, mended: int) -> None:
        """What the file cache found bad since the daemon started, and how much is right again."""
        self._count("cache_damaged", "Found damaged since the daemon started.", damaged)
        self._count("cache_mended", "Damaged, and right again.", mended)

    def render(self) -> bytes:
        """Prometheus text exposition, version 0.0.4."""
        return generate_latest(self._registry)

    def _show_live(self) -> None:
        for state in _LIVE:
            self._live.labels(state.value).set(self._counts[state])

    def _set(self, name: str, documentation: str, value: float) -> None:
        """A figure that nobody has told yet is not shown as 0."""
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = Gauge(f"executord_{name}", documentation, registry=self._registry)
            self._gauges[name] = gauge
        gauge.set(value)

    def _set_by(self, name: str, documentation: str, label: str, value: str, figure: float) -> None:
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = Gauge(f"executord_{name}", documentation, (label,), registry=self._registry)
            self._gauges[name] = gauge
        gauge.labels(value).set(figure)

    def _count(self, name: str, documentation: str, total: float) -> None:
        """Without a label; `total` never falls."""
        counter = self._counters.get(name)
        if counter is None:
            counter = prometheus.Counter(
                f"executord_{name}", documentation, registry=self._registry
            )
            self._counters[name] = counter
        told = self._told.get((name, ""), 0.0)
        counter.inc(max(0.0, total - told))
        self._told[name, ""] = max(told, total)

    def _count_to(
        self, name: str, documentation: str, label: str, value: str, total: float
    ) -> None:
        """For what others count: `total` never falls."""
        counter = self._counters.get(name)
        if counter is None:
            counter = prometheus.Counter(
                f"executord_{name}", documentation, (label,), registry=self._registry
            )
            self._counters[name] = counter
        told = self._told.get((name, value), 0.0)
        counter.labels(value).inc(max(0.0, total - told))
        self._told[name, value] = max(told, total)

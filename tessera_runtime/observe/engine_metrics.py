"""What engines say of themselves, read when Prometheus asks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tessera_runtime.server.engine_process import resident_bytes
from tessera_runtime.server.supervisor import EngineInstance

LABELS = ("model", "engine")
COUNTERS = {
    "steps": ("tessera_engine_steps", "Steps of the engine."),
    "computed_tokens": ("tessera_engine_computed_tokens", "Tokens that went through the model."),
    "generated_tokens": ("tessera_engine_generated_tokens", "Tokens that were drawn."),
    "prefix_queried_tokens": ("tessera_prefix_cache_queried_tokens", "Prompt tokens looked up in the prefix cache."),
    "prefix_hit_tokens": ("tessera_prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache."),
    "preemptions": ("tessera_preemptions", "Answers whose cache was taken for others, to be computed again."),
    "step_seconds": ("tessera_engine_step_seconds", "Time spent in steps."),
    "executor_seconds": ("tessera_engine_executor_seconds", "Of the time in steps, that spent computing the model."),
    "numerical_errors": ("tessera_numerical_errors", "Answers that ended because logits were not numbers."),
}
GAUGES = {
    "running": ("tessera_answers_running", "Answers that the engine works on."),
    "waiting": ("tessera_answers_waiting", "Answers that wait in the engine."),
    "used_blocks": ("tessera_kv_cache_used_blocks", "Blocks of the KV cache that answers hold."),
    "cached_blocks": ("tessera_kv_cache_reusable_blocks", "Blocks kept only for prompts that begin alike."),
    "total_blocks": ("tessera_kv_cache_blocks", "Blocks of the KV cache."),
}


class EngineCollector(Collector):
    """Counters do not go back when an engine is started again; gauges are missing while it is down."""

    def __init__(self, models: Mapping[str, Sequence[EngineInstance]]) -> None:
        self._models = models

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        engines = [(model, each) for model, instances in self._models.items() for each in instances]
        for attribute, (name, text) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for model, each in engines:
                counter.add_metric((model, each.name), each.counter(attribute))
            yield counter
        restarts = CounterMetricFamily("tessera_engine_restarts", "Engines that were started again.", labels=LABELS)
        for model, each in engines:
            restarts.add_metric((model, each.name), each.restarts)
        yield restarts
        for attribute, (name, text) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for model, each in engines:
                if each.statistics is not None:
                    gauge.add_metric((model, each.name), getattr(each.statistics, attribute))
            yield gauge
        yield from self._derived(engines)

    def _derived(self, engines: Sequence[tuple[str, EngineInstance]]) -> Iterator[Metric]:
        usage = GaugeMetricFamily("tessera_kv_cache_usage_ratio", "Used blocks of all blocks.", labels=LABELS)
        ready = GaugeMetricFamily("tessera_engine_ready", "1 if the engine serves.", labels=LABELS)
        outstanding = GaugeMetricFamily(
            "tessera_answers_outstanding", "Answers handed to the engine that have not ended.", labels=LABELS
        )
        memory = GaugeMetricFamily(
            "tessera_process_resident_memory_bytes", "Memory of each process in RAM.", labels=("process", "engine")
        )
        memory.add_metric(("gateway", ""), resident_bytes(os.getpid()))
        for model, each in engines:
            labels = (model, each.name)
            if each.statistics is not None and each.statistics.total_blocks:
                usage.add_metric(labels, each.statistics.used_blocks / each.statistics.total_blocks)
            ready.add_metric(labels, float(each.ready))
            outstanding.add_metric(labels, len(each.active))
            memory.add_metric(("engine", each.name), each.resident_bytes())
        yield from (usage, ready, outstanding, memory)

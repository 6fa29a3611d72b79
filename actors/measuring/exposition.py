"""Writes telemetry as a Prometheus page, by a registry of its own.

Neither prometheus_client's global registry nor its mode for several processes is used: that one
keeps a file for each process that ever was, and forgets which process a number came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from meterd.actors.measuring.catalog import FAMILIES, PREFIX, Family
from meterd.actors.measuring.telemetry import BOUNDS

Numbers = Mapping[str, Mapping[tuple[str, ...], float]]
Histograms = Mapping[str, Mapping[tuple[str, ...], list[float]]]

BOUND_TEXTS = (*(f"{bound:.6g}" for bound in BOUNDS), "+Inf")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Collector(Collector):
    def __init__(self, numbers: Numbers, histograms: Histograms) -> None:
        self._numbers = numbers
        self._histograms = histograms

    def collect(self) -> Iterable[Metric]:
        for family in FAMILIES:
            if family.kind == "histogram":
                yield _histogram(family, self._histograms[family.name])
                continue
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = make(PREFIX + family.name, family.help, labels=family.labels)
            for labels, value in self._numbers[family.name].items():
                metric.add_metric(labels, value)
            yield metric


def _histogram(family: Family, values: Mapping[tuple[str, ...], list[float]]) -> Metric:
    metric = HistogramMetricFamily(PREFIX + family.name, family.help, labels=family.labels)
    for labels, (total, *counts) in values.items():
        buckets = list(zip(BOUND_TEXTS, accumulate(counts), strict=True))
        metric.add_metric(labels, buckets, total)
    return metric


def render(numbers: Numbers, histograms: Histograms) -> bytes:
    """Return the page."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(numbers, histograms))
    page: bytes = generate_latest(registry)
    return page

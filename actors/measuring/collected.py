"""Puts together what the actors of a node have counted, across their restarts.

An actor counts from the start of its process.  When a snapshot comes from a new process, what the
old one had counted is kept as a base, so a counter on the page never falls while the node runs:
`to_bytes` and `restored` carry all of it over a restart of the metrics actor.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache

import msgpack

from meterd.actors.measuring.catalog import BY_NAME, FAMILIES, Kind
from meterd.actors.measuring.telemetry import BOUNDS, Snapshot

# One number: (name without labels, label values in the order of its family).
Key = tuple[str, tuple[str, ...]]

LABELLED = re.compile(r"([a-z0-9_]+)(?:\{(.*)\})?")
LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
SECTIONS: dict[str, Kind] = {
    "counters": "counter",  # since the process began
    "totals": "counter",  # since ever
    "gauges": "gauge",
    "histograms": "histogram",
}


@lru_cache(maxsize=4096)
def key_of(written: str) -> Key | None:
    """Read ``name{label="value"}``; None when the table of names has no such."""
    match = LABELLED.fullmatch(written)
    family = BY_NAME.get(match[1]) if match else None
    if match is None or family is None:
        return None
    labels = dict(LABEL.findall(match[2] or ""))
    if tuple(sorted(labels)) != tuple(sorted(family.labels)):
        return None
    return family.name, tuple(labels[label] for label in family.labels)


@dataclass
class Source:
    """What one actor has said."""

    pid: int = 0
    last: Snapshot = field(default_factory=lambda: {name: {} for name in SECTIONS})
    # Totals of its earlier processes.
    counters: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, list[float]] = field(default_factory=dict)

    def take(self, snapshot: Snapshot) -> None:
        """Take a snapshot; one of a new process adds the last of the old one to the base."""
        if snapshot["pid"] != self.pid:
            for name, value in self.last["counters"].items():
                self.counters[name] = self.counters.get(name, 0) + value
            for name, values in self.last["histograms"].items():
                self.histograms[name] = _sum(self.histograms.get(name), values)
            self.pid = snapshot["pid"]
        self.last = snapshot


class Collected:
    """The numbers of all actors, by family."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = defaultdict(Source)
        self.unknown: set[str] = set()

    @classmethod
    def restored(cls, page: bytes) -> Collected:
        """Return what `to_bytes` has written."""
        collected = cls()
        sources, unknown = msgpack.unpackb(page)
        collected.unknown = set(unknown)
        for actor, said in sources.items():
            collected._sources[actor] = Source(*said)
        return collected

    def to_bytes(self) -> bytes:
        """Return all of it."""
        sources = {
            actor: (one.pid, one.last, one.counters, one.histograms)
            for actor, one in self._sources.items()
        }
        packed: bytes = msgpack.packb((sources, list(self.unknown)))
        return packed

    def take_processor_time(self, actor: str, pid: int, seconds: float) -> None:
        """Take what the process of an actor has used, as if the actor had counted it."""
        counters = {f'actor_cpu_seconds_total{{actor="{actor}"}}': seconds}
        snapshot: Snapshot = {"pid": pid} | {name: {} for name in SECTIONS}
        self.take(f"process of {actor}", snapshot | {"counters": counters})

    def take(self, actor: str, snapshot: Snapshot) -> None:
        """Take the newest snapshot of an actor; names that no table has are kept apart."""
        self._sources[actor].take(snapshot)
        for section, kind in SECTIONS.items():
            for name in snapshot[section]:
                key = key_of(name)
                if key is None or BY_NAME[key[0]].kind != kind:
                    self.unknown.add(name)

    def numbers(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return {family: {label values: number}} of all counters and gauges."""
        found: dict[str, dict[tuple[str, ...], float]] = {
            family.name: dict.fromkeys(family.initial, 0)
            for family in FAMILIES
            if family.kind != "histogram"
        }
        for source in self._sources.values():
            for counters in (source.counters, source.last["counters"]):
                for name, value in self._known(counters):
                    family, labels = name
                    found[family][labels] = found[family].get(labels, 0) + value
            for section in ("totals", "gauges"):
                for (family, labels), value in self._known(source.last[section]):
                    found[family][labels] = value
        return found

    def histograms(self) -> dict[str, dict[tuple[str, ...], list[float]]]:
        """Return {family: {label values: sum, then a count per bucket}}."""
        found: dict[str, dict[tuple[str, ...], list[float]]] = {
            family.name: {labels: [0.0] * (len(BOUNDS) + 2) for labels in family.initial}
            for family in FAMILIES
            if family.kind == "histogram"
        }
        for source in self._sources.values():
            for histograms in (source.histograms, source.last["histograms"]):
                for (family, labels), values in self._known(histograms):
                    found[family][labels] = _sum(found[family].get(labels), values)
        return found

    def gauge(self, written: str) -> float | None:
        """Return one gauge, as its actor last said it."""
        for source in self._sources.values():
            if written in source.last["gauges"]:
                value: float = source.last["gauges"][written]
                return value
        return None

    def _known(self, section: dict) -> list:  # type: ignore[type-arg]
        return [
            (key_of(name), value) for name, value in section.items() if name not in self.unknown
        ]


def _sum(base: list[float] | None, values: list[float]) -> list[float]:
    if base is None:
        return list(values)
    return [a + b for a, b in zip(base, values, strict=True)]

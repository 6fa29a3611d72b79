"""Holds every version of every metric definition: what each metric number in the log means.

The registry is replicated state: it changes only through commands of the log (`put`, `delete`),
whose leader time becomes the effective time of a new version.  The transitions of a period's time
zone are part of the command, so replicas with different zone files still agree, and totals never
move because a host was updated.  Two registries with the same history have the same bytes.

Invariants:
  * a metric number is given to one version of one code, for ever;
  * versions of a code have strictly rising effective times, and the first reaches back for ever;
  * a deleted metric takes no events, whatever their time, but its versions stay and answer;
  * putting what is in force changes nothing, so a command may be applied by whoever repeats it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgpack

from meterd.core.questions.zones import Transitions
from meterd.protocol.errors import MetricConflict, TooManyMetrics, UnknownMetric
from meterd.protocol.limits import I64_MIN
from meterd.protocol.metric import MetricDefinition

# Versions of all metrics together; a number is a u16 and the log spends two bytes on it per row.
ENTRIES_MAX: Final = 10_000
FORMAT_VERSION: Final = 1

Outcome = Literal["created", "unchanged", "replaced"]


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """One version of a metric; `definition` says which, since when, and whether it is deleted."""

    number: int  # u16, from 1, never given twice
    definition: MetricDefinition
    transitions: Transitions  # of the period's time zone, as logged

    @property
    def code(self) -> str:
        return self.definition.code

    @property
    def version(self) -> int:
        return self.definition.version

    @property
    def effective_from(self) -> int:
        """UTC ns from which on an event's timestamp selects this version."""
        return self.definition.effective_from

    @property
    def deleted(self) -> bool:
        return self.definition.deleted


class Registry:
    """All metrics.  Changed only through `put` and `delete`, which raise or do all of it."""

    def __init__(self) -> None:
        self.version = 0  # grows by one with every change
        self.entries: list[MetricEntry] = []  # number n stands at n - 1
        self._numbers: dict[str, list[int]] = {}  # code → its numbers in effective order

    def put(
        self,
        definition: MetricDefinition,
        transitions: Transitions,
        replace: bool,
        leader_time: int,
    ) -> Outcome:
        """Register a definition, effective from `leader_time` unless it is its code's first.

        With `replace` the transitions count too: that is how new rules of a time zone are taken
        over.  Raises MetricConflict or TooManyMetrics, and changes nothing then.
        """
        current = self.find(definition.code)
        outcome: Outcome = "created"
        if current is not None and not current.deleted:
            same = current.definition.same_content(definition)
            if same and (not replace or current.transitions == transitions):
                return "unchanged"
            if not replace:
                raise MetricConflict(f"{definition.code} is registered with another definition")
            outcome = "replaced"
        if len(self.entries) >= ENTRIES_MAX:
            raise TooManyMetrics(f"{ENTRIES_MAX} versions of metrics are registered")
        self._append(definition, transitions, leader_time)
        self.version += 1
        return outcome

    def delete(self, code: str) -> None:
        """Let a metric take no more events.  Raises UnknownMetric."""
        current = self.find(code)
        if current is None or current.deleted:
            raise UnknownMetric(f"no metric {code} is registered")
        gone = replace(current, definition=replace(current.definition, deleted=True))
        self.entries[current.number - 1] = gone
        self.version += 1

    def find(self, code: str) -> MetricEntry | None:
        """Return the newest version of a metric, which may be deleted."""
        numbers = self._numbers.get(code)
        return self.entry(numbers[-1]) if numbers else None

    def versions(self, code: str) -> list[MetricEntry]:
        """Return all versions of a metric in effective order."""
        return [self.entry(number) for number in self._numbers.get(code, ())]

    def entry(self, number: int) -> MetricEntry:
        """Return the version that a metric number stands for.  Raises UnknownMetric."""
        if not 1 <= number <= len(self.entries):
            raise UnknownMetric(f"metric number {number} is not registered")
        return self.entries[number - 1]

    def select(self, code: str, timestamp: int) -> MetricEntry | None:
        """Return the version an event with this timestamp counts by, or None to refuse it."""
        versions = self.versions(code)
        if not versions or versions[-1].deleted:
            return None
        return versions[effective_at(versions, timestamp)]

    def to_bytes(self) -> bytes:
        """Return the registry as bytes, the same for the same history."""
        tables: dict[Transitions, int] = {}
        entries = []
        for entry in self.entries:
            table = tables.setdefault(entry.transitions, len(tables))
            entries.append({"definition": entry.definition.to_map(), "table": table})
        packed = {
            "format": FORMAT_VERSION,
            "version": self.version,
            "tables": [list(table) for table in tables],
            "entries": entries,
        }
        return bytes(msgpack.packb(packed))

    @classmethod
    def from_bytes(cls, packed: bytes | memoryview) -> Registry:
        """Read what `to_bytes` wrote; the file or message around it has its own checksum."""
        fields = msgpack.unpackb(packed)
        if fields["format"] != FORMAT_VERSION:
            raise ValueError(f"registry format {fields['format']} is not known")
        tables = [tuple((at, offset) for at, offset in table) for table in fields["tables"]]
        registry = cls()
        registry.version = fields["version"]
        for raw in fields["entries"]:
            definition = MetricDefinition.from_map(raw["definition"])
            registry._place(definition, tables[raw["table"]])
        return registry

    def _append(
        self, definition: MetricDefinition, transitions: Transitions, leader_time: int
    ) -> None:
        versions = self.versions(definition.code)
        effective_from = I64_MIN
        if versions:
            effective_from = max(leader_time, versions[-1].effective_from + 1)
        registered = replace(
            definition, version=len(versions) + 1, effective_from=effective_from, deleted=False
        )
        self._place(registered, transitions)

    def _place(self, definition: MetricDefinition, transitions: Transitions) -> None:
        number = len(self.entries) + 1
        self.entries.append(MetricEntry(number, definition, transitions))
        self._numbers.setdefault(definition.code, []).append(number)


def effective_at(versions: list[MetricEntry], timestamp: int) -> int:
    """Return the position of the version in force at a moment; the first reaches back for ever."""
    return bisect_right([entry.effective_from for entry in versions], timestamp) - 1

"""Tells whether what several versions of a metric have counted can be added up.

Versions that aggregate alike add up, whatever their decimals.  An event may also have been counted
by an earlier version although its timestamp is at or behind the moment from which the next one is
in force: its client's clock was ahead, or its node did not know the next version yet.  No split of
a range takes such events out, so they are added up as the answering version asks: a cell of events
holds everything but the members, whatever its metric aggregates.  With `unique` there is no answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels.gather import SEAT_CELL
from meterd.core.questions.partial_cells import PartialCells
from meterd.core.state.registry import MetricEntry
from meterd.protocol.errors import MetricVersionsDiffer


def check_versions(
    partial: PartialCells, entries: Sequence[MetricEntry], answering: MetricEntry
) -> None:
    """Raise MetricVersionsDiffer when cells hold what `answering` cannot add up.

    entries: all versions of the metric.  The error names the moment to split at, if that helps.
    """
    for entry in entries:
        if adds_up(entry, answering):
            continue
        cells = _cells_of(partial, entry)
        first, last = cells[:, cell_rows.FIRST_TS], cells[:, cell_rows.LATEST_TS]
        # An earlier version always has a next one.
        earlier = entry.version < answering.version
        split = entries[entry.version].effective_from if earlier else entry.effective_from
        if not _counts_members(entry) and not _counts_members(answering):
            if earlier:
                cells = cells[first < split]
            if len(cells):
                raise _error(entry, answering, f"split the range at {split}")
            continue
        if earlier and not _counts_members(entry):
            split = answering.effective_from
        if _has_seats(partial, entry) or (len(cells) and (last >= split).any()):
            raise _error(entry, answering, "no split of the range helps")
        if len(cells):
            raise _error(entry, answering, f"split the range at {split}")


def check_balances(
    partial: PartialCells, entries: Sequence[MetricEntry], answering: MetricEntry
) -> None:
    """Raise MetricVersionsDiffer when balances lie where only events could be added up.

    A balance holds no more than what its own version asks for.
    """
    for entry in entries[: answering.version - 1]:
        last = _cells_of(partial, entry)[:, cell_rows.LATEST_TS]
        late = (last >= entries[entry.version].effective_from).any()
        if late and not adds_up(entry, answering):
            raise _error(entry, answering, "no split of the range helps: there are balances")


def adds_up(entry: MetricEntry, other: MetricEntry) -> bool:
    """Tell whether what two versions have counted can always be added up."""
    one, two = entry.definition, other.definition
    return one.aggregation == two.aggregation and one.unique_on == two.unique_on


def _cells_of(partial: PartialCells, entry: MetricEntry) -> NDArray[np.int64]:
    """Return the cells in which a version has counted something."""
    counted = partial.cells[:, cell_rows.COUNT] > 0
    return partial.cells[counted & (partial.metric == entry.number)]


def _has_seats(partial: PartialCells, entry: MetricEntry) -> bool:
    """Tell whether there are members that come and go; they come from the beginning of the log."""
    if partial.seats is None:
        return False
    return bool((partial.metric[partial.seats.rows[:, SEAT_CELL]] == entry.number).any())


def _counts_members(entry: MetricEntry) -> bool:
    return entry.definition.aggregation == "unique"


def _error(entry: MetricEntry, answering: MetricEntry, advice: str) -> MetricVersionsDiffer:
    return MetricVersionsDiffer(
        f"{entry.code} was counted as {_name(entry)} and as {_name(answering)}; {advice}"
    )


def _name(entry: MetricEntry) -> str:
    definition = entry.definition
    on = f" on {definition.unique_on}" if definition.unique_on else ""
    return definition.aggregation + on

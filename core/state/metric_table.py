"""Builds what the apply kernel must know of all metrics from the registry and the leader's time.

Memory holds the cells of every period of a metric from the one before the current on, as far ahead
as events may lie.  Which those are follows from the leader's time alone, so all replicas agree; it
is worked out again when a period ends (`MetricBook.until`) or the registry changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import apply
from meterd.core.kernels.memory import handle_of
from meterd.core.questions import periods
from meterd.core.staging import code_hash
from meterd.core.state.registry import MetricEntry, Registry

_KINDS = {False: apply.UNIQUE_VALUES, True: apply.UNIQUE_PROPERTY}


@dataclass(frozen=True, slots=True)
class MetricBook:
    """The kernel's table, and when it must be made anew."""

    table: apply.MetricTable
    handle: NDArray[np.int64]  # of the table
    bounds: dict[int, NDArray[np.int64]]  # metric number → boundaries of the periods in memory
    until: int  # leader time from which on the boundaries are out of date


def make_book(
    registry: Registry, leader_time: int, future_ns: int, identity_key: tuple[int, int]
) -> MetricBook:
    """Return the table for records from `leader_time` on."""
    rows = np.zeros((len(registry.entries) + 1, 8), np.int64)
    hashes = np.zeros(len(rows), np.uint64)
    keys = bytearray()
    places: list[tuple[int, int]] = []
    bounds: dict[int, NDArray[np.int64]] = {}
    shared: dict[tuple[object, object], NDArray[np.int64]] = {}
    until = np.iinfo(np.int64).max
    pieces: list[NDArray[np.int64]] = []
    used = 0
    for entry in registry.entries:
        definition = entry.definition
        period = (definition.period, entry.transitions)
        if period not in shared:
            shared[period] = _kept(entry, leader_time, future_ns)
            pieces.append(shared[period])
            until = min(until, int(periods.bounds(*period, leader_time)[1]))
        edges = bounds[entry.number] = shared[period]
        row = rows[entry.number]
        row[apply.DECIMALS] = definition.decimals
        row[apply.DIM_FIRST], row[apply.DIM_COUNT] = len(places), len(definition.dimensions)
        for key in sorted(key.encode() for key in definition.dimensions):
            places.append((len(keys), len(keys) + len(key)))
            keys += key
        if definition.aggregation == "unique":
            unique_on = (definition.unique_on or "").encode()
            row[apply.UNIQUE_KIND] = _KINDS[bool(unique_on)]
            row[apply.UNIQUE_KEY_START] = len(keys)
            keys += unique_on
            row[apply.UNIQUE_KEY_END] = len(keys)
        row[apply.BOUND_COUNT] = len(edges)
        hashes[entry.number] = code_hash(identity_key, entry.code.encode())
    offsets: dict[int, int] = {}
    for piece in pieces:
        offsets[id(piece)] = used
        used += len(piece)
    for number, edges in bounds.items():
        rows[number, apply.BOUND_FIRST] = offsets[id(edges)]
    table = apply.MetricTable(
        rows,
        hashes,
        np.frombuffer(bytes(keys) or b"\0", np.uint8),
        np.array(places or [(0, 0)], np.int64),
        np.concatenate(pieces) if pieces else np.zeros(1, np.int64),
    )
    return MetricBook(table, handle_of(table), bounds, until)


def _kept(entry: MetricEntry, leader_time: int, future_ns: int) -> NDArray[np.int64]:
    """Return the boundaries of the periods from the previous to the furthest that may be taken."""
    period, transitions = entry.definition.period, entry.transitions
    first = periods.previous(period, transitions, leader_time)[0]
    # The table serves until the current period ends, so the last event taken may be that late.
    last = periods.bounds(period, transitions, leader_time)[1] + future_ns
    return periods.starts(period, transitions, first, last)

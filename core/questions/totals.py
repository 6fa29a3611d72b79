"""Adds partial cells up into exact totals.

Sums are 128-bit integers in the kernels and Python integers here; versions of a metric with other
`decimals` are brought to the largest of them, which loses nothing.  Nothing is ever a float.

Distinct members are counted over sets: those seen by an event, and those that were present at
any moment of the range or window because of `add` and `remove`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.frozen import frozen
from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels import reduce as kernels
from meterd.core.kernels.cells import CELL_WORDS, sum_of
from meterd.core.kernels.gather import SEAT_CELL, SEAT_OPERATION, SEAT_POSITION, SEAT_TIMESTAMP
from meterd.core.questions.partial_cells import PartialCells
from meterd.protocol.decimal_text import format_decimal
from meterd.protocol.errors import BadRequest
from meterd.protocol.limits import I64_MAX, I64_MIN

# Memberships (a member in a group or window) that one answer may count: about 1 GB while it does.
MEMBERSHIPS_MAX: Final = 10_000_000
# An average is rounded to so many digits more than the metric has.
AVERAGE_DIGITS: Final = 6
# Two different fractions below one with denominators below this differ by more than a float's
# rounding, so comparing them as floats orders them exactly.
EXACT_COUNT_MAX: Final = 1 << 26

# The column of a cell that an aggregation asks for; sum and avg take two.
COLUMNS: Final = {
    "count": cell_rows.COUNT,
    "unique": cell_rows.UNIQUE,
    "min": cell_rows.MIN,
    "max": cell_rows.MAX,
    "latest": cell_rows.LATEST_VALUE,
    "first": cell_rows.FIRST_VALUE,
}
# Columns by which latest and first are told apart; nobody else looks at them.
LATEST_COLUMNS: Final = [cell_rows.LATEST_TS, cell_rows.LATEST_POS]
ORDER_COLUMNS: Final = defaultdict(
    lambda: LATEST_COLUMNS, first=[cell_rows.FIRST_TS, cell_rows.FIRST_POS]
)

Buckets = NDArray[np.int64]
Placed = tuple[int, tuple[int, ...]]  # amount, and (timestamp, position) it stems from


@dataclass(slots=True)
class Totals:
    """What each of n buckets adds up to, by column; a bucket with count 0 holds no event.

    `amounts` are what the aggregation asks for, in units of 10^-digits: the sum for sum and avg,
    the number of members for unique, else the value itself.
    """

    counts: NDArray[np.int64]
    amounts: list[int]
    newest: NDArray[np.int64]  # latest timestamp

    def __len__(self) -> int:
        return len(self.amounts)


def add_up(
    partial: PartialCells,
    buckets: Buckets,
    bucket_count: int,
    scales: dict[int, int],
    aggregation: str,
) -> Totals:
    """Return the total of each bucket; -1 leaves a cell out.

    `scales` says for each metric number what to multiply amounts by.  Members are not counted here.
    """
    kinds = sorted(set(scales.values()))
    if len(kinds) == 1:  # nearly always: a metric that never changed its decimals
        out = np.empty((bucket_count, CELL_WORDS), np.int64)
        kernels.reduce_cells(frozen(partial.cells), buckets, out)
        amounts = _amounts(out, aggregation, kinds[0])
        return Totals(out[:, cell_rows.COUNT], amounts, out[:, cell_rows.LATEST_TS])
    scale_of = np.zeros(max(scales, default=0) + 1, np.int64)
    for number, scale in scales.items():
        scale_of[number] = kinds.index(scale)
    kind = scale_of[partial.metric]
    reduced = []
    for place in range(len(kinds)):
        if not (kind == place).any():
            continue
        out = np.empty((bucket_count, CELL_WORDS), np.int64)
        chosen = np.where(kind == place, buckets, -1)
        kernels.reduce_cells(frozen(partial.cells), chosen, out)
        reduced.append((out, _amounts(out, aggregation, kinds[place])))
    if not reduced:
        none = np.zeros(bucket_count, np.int64)
        return Totals(none, [0] * bucket_count, none)
    return _combined(reduced, aggregation)


def _amounts(cells: NDArray[np.int64], aggregation: str, scale: int) -> list[int]:
    """Return what the aggregation asks for of each cell, multiplied by `scale`."""
    column = COLUMNS.get(aggregation)
    if column is None:  # a 128-bit sum, nearly always one that fits 64 bits
        low, high = cells[:, cell_rows.SUM_LO], cells[:, cell_rows.SUM_HI]
        amounts: list[int] = low.tolist()
        for wide in np.flatnonzero(high != low >> 63).tolist():
            amounts[wide] = sum_of(cells[wide])
    else:
        amounts = cells[:, column].tolist()
    if scale != 1 and aggregation != "count":
        amounts = [amount * scale for amount in amounts]
    return amounts


def _combined(reduced: list[tuple[NDArray[np.int64], list[int]]], aggregation: str) -> Totals:
    """Add up what versions with different decimals have counted."""
    cells, amounts = reduced[0]
    counts = cells[:, cell_rows.COUNT].copy()
    newest = cells[:, cell_rows.LATEST_TS].copy()
    seen = list(map(tuple, cells[:, ORDER_COLUMNS[aggregation]].tolist())) if reduced[1:] else []
    for others, other_amounts in reduced[1:]:
        order = list(map(tuple, others[:, ORDER_COLUMNS[aggregation]].tolist()))
        for bucket in np.flatnonzero(others[:, cell_rows.COUNT]).tolist():
            if not counts[bucket]:
                amounts[bucket], seen[bucket] = other_amounts[bucket], order[bucket]
                newest[bucket] = others[bucket, cell_rows.LATEST_TS]
                continue
            pair = (amounts[bucket], seen[bucket]), (other_amounts[bucket], order[bucket])
            amounts[bucket], seen[bucket] = _chosen(aggregation, *pair)
            newest[bucket] = max(newest[bucket], others[bucket, cell_rows.LATEST_TS])
        counts += others[:, cell_rows.COUNT]
    return Totals(counts, amounts, newest)


def _chosen(aggregation: str, one: Placed, two: Placed) -> Placed:
    """Return the (amount, place in time) of two that are not empty."""
    if aggregation == "min":
        return min(one, two)
    if aggregation == "max":
        return max(one, two)
    if aggregation == "latest":
        return max(one, two, key=_place)
    if aggregation == "first":
        return min(one, two, key=_place)
    return one[0] + two[0], one[1]


def _place(placed: Placed) -> tuple[int, ...]:
    return placed[1]


def count_members(
    partial: PartialCells, groups: Buckets, group_count: int, edges: list[int], windows: Buckets
) -> NDArray[np.int64]:
    """Return how many distinct members each group has in each window, as (groups, windows).

    groups: per cell, -1 to leave it out; edges: boundaries of the windows; windows: per cell.
    Raises BadRequest when there are too many to count.
    """
    width = len(edges) - 1
    pieces = []
    if partial.members is not None:
        cell, hashes = partial.members.cell, partial.members.hashes
        bucket = np.where(groups[cell] >= 0, groups[cell] * width + windows[cell], -1)
        pieces.append((bucket[bucket >= 0], hashes[bucket >= 0]))
    if partial.seats is not None and edges[0] < edges[-1]:
        pieces.append(_present(partial, groups, np.array(edges, np.int64)))
    buckets = np.concatenate([np.empty(0, np.int64), *(bucket for bucket, _ in pieces)])
    if len(buckets) > MEMBERSHIPS_MAX:
        raise BadRequest(f"more than {MEMBERSHIPS_MAX} members to count; ask for a shorter range")
    members = np.concatenate([np.empty((0, 2), np.uint64), *(hashes for _, hashes in pieces)])
    order = np.lexsort((members[:, 1], members[:, 0], buckets))
    buckets, members = buckets[order], members[order]
    is_new = np.ones(len(buckets), np.bool_)
    is_new[1:] = (buckets[1:] != buckets[:-1]) | (members[1:] != members[:-1]).any(axis=1)
    counts = np.bincount(buckets[is_new], minlength=group_count * width)
    return counts.reshape(group_count, width)


def _present(
    partial: PartialCells, groups: Buckets, edges: NDArray[np.int64]
) -> tuple[Buckets, NDArray[np.uint64]]:
    """Return (bucket, member) for each window in which a member was present."""
    assert partial.seats is not None
    chosen = groups[partial.seats.rows[:, SEAT_CELL]] >= 0
    rows, hashes = partial.seats.rows[chosen], partial.seats.hashes[chosen]
    group = groups[rows[:, SEAT_CELL]]
    timestamp, position = rows[:, SEAT_TIMESTAMP], rows[:, SEAT_POSITION]
    order = np.lexsort((position, timestamp, hashes[:, 1], hashes[:, 0], group))
    group, hashes = group[order], hashes[order]
    out = np.empty((len(order), 3), np.int64)
    operation = rows[order, SEAT_OPERATION]
    found = out[: kernels.presence(group, hashes, timestamp[order], operation, out)]
    row, since, until = found[:, 0], found[:, 1], found[:, 2]
    first = np.searchsorted(edges[1:], since, side="right")
    last = np.searchsorted(edges[:-1], until, side="left")
    spans = np.maximum(last - first, 0)
    if int(spans.sum()) > MEMBERSHIPS_MAX:
        raise BadRequest(f"more than {MEMBERSHIPS_MAX} members to count; ask for a shorter range")
    row = np.repeat(row, spans)
    within = np.arange(len(row)) - np.repeat(np.cumsum(spans) - spans, spans)
    window = np.repeat(first, spans) + within
    return group[row] * (len(edges) - 1) + window, hashes[row]


def value_text(aggregation: str, amount: int, count: int, decimals: int, digits: int) -> str | None:
    """Return a value as decimal text, or None where there is none.

    decimals: of the metric; digits: the amount is in units of 10^-digits.
    """
    if aggregation in ("count", "unique"):
        return str(amount)
    if not count:
        return "0" if aggregation == "sum" else None
    if aggregation == "avg":
        shown = decimals + AVERAGE_DIGITS
        return format_decimal(round(average(amount, count, digits) * 10**shown), shown)
    return format_decimal(amount, digits)


def average(amount: int, count: int, digits: int) -> Fraction:
    """Return sum / count, exactly.  (`round` takes halves of a Fraction to even.)"""
    return Fraction(amount, count * 10**digits)


def order_by_amount(
    aggregation: str, totals: Totals, chosen: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the chosen buckets with the greatest first, equal ones in the order they came."""
    counts = totals.counts[chosen]
    amounts = [totals.amounts[bucket] for bucket in chosen.tolist()]
    is_average = aggregation == "avg"
    narrow = all(I64_MIN <= amount <= I64_MAX for amount in amounts)
    if not narrow or (is_average and len(counts) and int(counts.max()) >= EXACT_COUNT_MAX):
        exact: list[Any] = amounts
        if is_average:
            exact = list(map(Fraction, amounts, counts.tolist()))
        order = sorted(range(len(exact)), key=exact.__getitem__, reverse=True)
        return chosen[np.array(order, np.int64)]
    keys = np.array(amounts, np.int64)
    if not is_average:
        return chosen[np.argsort(~keys, kind="stable")]
    whole = keys // np.maximum(counts, 1)
    part = (keys - whole * counts) / np.maximum(counts, 1)
    return chosen[np.lexsort((-part, ~whole))]

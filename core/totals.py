"""Adds partial cells up into exact totals.

Sums are 128-bit integers in the kernels and Python integers here; versions of a metric with other
`decimals` are brought to the largest of them, which loses nothing.  Nothing is ever a float.

Distinct members are counted over sets: those seen by an event, and those that were present at
any moment of the range or window because of `add` and `remove`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels import cells as cell_rows
from meterd.core.kernels import reduce as kernels
from meterd.core.kernels.cells import CELL_WORDS, sum_of
from meterd.core.kernels.gather import SEAT_CELL, SEAT_OPERATION, SEAT_POSITION, SEAT_TIMESTAMP
from meterd.core.log_index import frozen
from meterd.core.partial_cells import PartialCells
from meterd.protocol.decimal_text import format_decimal
from meterd.protocol.errors import BadRequest

# Memberships (a member in a group or window) that one answer may count: about 1 GB while it does.
MEMBERSHIPS_MAX: Final = 10_000_000
# An average is rounded to so many digits more than the metric has.
AVERAGE_DIGITS: Final = 6
EMPTY_IS_ZERO: Final = ("count", "sum", "unique")

Buckets = NDArray[np.int64]


@dataclass(slots=True)
class Total:
    """What one group of events adds up to; amounts in units of 10^-decimals."""

    count: int = 0
    sum: int = 0
    min: int = 0
    max: int = 0
    latest: tuple[int, int, int] = (0, 0, 0)  # timestamp, position, value
    first: tuple[int, int, int] = (0, 0, 0)
    unique: int = 0

    @classmethod
    def of_cell(cls, row: NDArray[np.int64], scale: int) -> Total:
        """Read a cell, its amounts multiplied by `scale`."""
        words = row.tolist()
        at, pos, value = words[cell_rows.LATEST_TS : cell_rows.LATEST_VALUE + 1]
        first_at, first_pos, first_value = words[cell_rows.FIRST_TS : cell_rows.FIRST_VALUE + 1]
        return cls(
            words[cell_rows.COUNT],
            sum_of(row) * scale,
            words[cell_rows.MIN] * scale,
            words[cell_rows.MAX] * scale,
            (at, pos, value * scale),
            (first_at, first_pos, first_value * scale),
        )

    def add(self, other: Total) -> None:
        """Add another total, neither of them empty."""
        self.count += other.count
        self.sum += other.sum
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)
        self.latest = max(self.latest, other.latest)
        self.first = min(self.first, other.first)


def add_up(
    partial: PartialCells, buckets: Buckets, bucket_count: int, scales: dict[int, int]
) -> list[Total]:
    """Return the total of each bucket; `scales` says what to multiply by, per metric number.

    Members are not counted here.
    """
    totals = [Total() for _ in range(bucket_count)]
    kinds = sorted(set(scales.values()))
    scale_of = np.zeros(max(scales, default=0) + 1, np.int64)
    for number, scale in scales.items():
        scale_of[number] = kinds.index(scale)
    kind = scale_of[partial.metric] if len(partial.metric) else np.empty(0, np.int64)
    for place, scale in enumerate(kinds):
        chosen = np.where(kind == place, buckets, -1)
        out = np.empty((bucket_count, CELL_WORDS), np.int64)
        kernels.reduce_cells(frozen(partial.cells), chosen, out)
        for bucket in np.flatnonzero(out[:, cell_rows.COUNT]).tolist():
            found = Total.of_cell(out[bucket], scale)
            if totals[bucket].count:
                totals[bucket].add(found)
            else:
                totals[bucket] = found
    return totals


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
    if partial.seats is not None and width > 0:
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


def value_text(total: Total, aggregation: str, decimals: int, scale_digits: int) -> str | None:
    """Return the value of a total as decimal text, or None where there is none.

    decimals: of the metric; scale_digits: amounts are in units of 10^-scale_digits.
    """
    if aggregation == "unique":
        return str(total.unique)
    if aggregation == "count":
        return str(total.count)
    if not total.count:
        return "0" if aggregation in EMPTY_IS_ZERO else None
    if aggregation == "avg":
        digits = decimals + AVERAGE_DIGITS
        units = average(total, scale_digits) * 10**digits
        return format_decimal(round(units), digits)  # round() takes halves to even
    amounts: dict[str, Any] = {
        "sum": total.sum,
        "min": total.min,
        "max": total.max,
        "latest": total.latest[2],
        "first": total.first[2],
    }
    return format_decimal(amounts[aggregation], scale_digits)


def average(total: Total, scale_digits: int) -> Fraction:
    """Return sum / count, exactly."""
    return Fraction(total.sum, total.count * 10**scale_digits)


def amount(total: Total, aggregation: str) -> Fraction | int:
    """Return what accounts are compared by when they are sorted by usage."""
    if aggregation == "avg":
        return Fraction(total.sum, total.count)
    amounts: dict[str, int] = {
        "count": total.count,
        "unique": total.unique,
        "sum": total.sum,
        "min": total.min,
        "max": total.max,
        "latest": total.latest[2],
        "first": total.first[2],
    }
    return amounts[aggregation]

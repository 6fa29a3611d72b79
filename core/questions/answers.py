"""Answers questions about usage from partial cells: filters, groups, windows, text of values.

The same code answers from the totals in memory and from the log files, so both give the same
answer.  A range over several versions of a metric is added up when they aggregate alike, whatever
their decimals; otherwise there is mostly no such number (core/questions/mixed_versions.py).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from meterd.core.kernels.entries import read_dimensions
from meterd.core.questions.mixed_versions import check_versions
from meterd.core.questions.partial_cells import Members, PartialCells, Seats
from meterd.core.questions.partition_sets import lie_in
from meterd.core.questions.question import Question, answering
from meterd.core.questions.totals import (
    Buckets,
    Totals,
    add_up,
    average,
    count_members,
    order_by_amount,
    value_text,
)
from meterd.core.state.registry import MetricEntry
from meterd.protocol.errors import BadRequest

__all__ = [
    "AnswerContext",
    "Members",
    "PartialCells",
    "Ranking",
    "Seats",
    "answer_accounts",
    "answer_usage",
]

# Groups and windows of one answer; beyond them a question is an export, not an answer.
GROUPS_MAX: Final = 10_000
POINTS_MAX: Final = 200_000

Key = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """What an answer says about the state it was computed from."""

    position: str
    horizon: int  # events before it may be gone


@dataclass(frozen=True, slots=True)
class _Text:
    """Turns an amount and a count into decimal text."""

    aggregation: str
    decimals: int
    digits: int

    def __call__(self, amount: int, count: int) -> str | None:
        return value_text(self.aggregation, amount, count, self.decimals, self.digits)


class Reckoning:
    """Partial cells of one question, made ready to be added up in several ways."""

    def __init__(
        self, question: Question, entries: Sequence[MetricEntry], partial: PartialCells
    ) -> None:
        """`entries`: all versions of the metric.  Raises MetricVersionsDiffer."""
        self.question = question
        self.partial = partial
        self.entry = answering(list(entries), question.end)
        self.aggregation = self.entry.definition.aggregation
        self._entries = {entry.number: entry for entry in entries}
        check_versions(partial, entries, self.entry)
        self.digits = max(entry.definition.decimals for entry in entries)
        self._scales = {
            entry.number: 10 ** (self.digits - entry.definition.decimals) for entry in entries
        }
        self.text = _Text(self.aggregation, self.entry.definition.decimals, self.digits)
        self._values: dict[tuple[int, bytes], dict[str, str | None]] = {}
        self.chosen = self._filter()

    def group(self, keys: Sequence[str]) -> tuple[Buckets, list[Key]]:
        """Return the group of each cell (-1: filtered out) and the values that name the groups."""
        if not keys:
            return np.where(self.chosen, 0, -1), [()]
        found: dict[Key, int] = {}
        groups = np.full(len(self.chosen), -1, np.int64)
        for cell in np.flatnonzero(self.chosen).tolist():
            values = self._dimensions(cell)
            key = tuple(values.get(name) for name in keys)
            groups[cell] = found.setdefault(key, len(found))
        if len(found) > GROUPS_MAX:
            raise BadRequest(f"group_by: more than {GROUPS_MAX} groups; add filters")
        return groups, list(found)

    def totals(self, groups: Buckets, group_count: int) -> Totals:
        """Return the total of each group over the whole range."""
        totals = self._add_up(groups, group_count)
        if self.aggregation == "unique":
            edges = [self.question.start, self.question.end]
            windows = np.zeros(len(groups), np.int64)
            counts = count_members(self.partial, groups, group_count, edges, windows)
            totals.amounts = counts[:, 0].tolist()
        return totals

    def series(self, groups: Buckets, group_count: int) -> Totals:
        """Return the totals of each group in each window, those of a group together."""
        edges = self.question.edges
        width = len(edges) - 1
        if group_count * width > POINTS_MAX:
            raise BadRequest(f"more than {POINTS_MAX} values; choose longer windows")
        windows = np.searchsorted(np.array(edges, np.int64), self.partial.window, "right") - 1
        windows = np.clip(windows, 0, width - 1)
        buckets = np.where(groups >= 0, groups * width + windows, -1)
        totals = self._add_up(buckets, group_count * width)
        if self.aggregation == "unique":
            counts = count_members(self.partial, groups, group_count, list(edges), windows)
            totals.amounts = counts.ravel().tolist()
        return totals

    def fraction(self, amount: int, count: int) -> list[str] | None:
        """Return an average exactly, as two decimal texts: they may exceed 64 bits."""
        if self.aggregation != "avg" or not count:
            return None
        exact = average(amount, count, self.digits)
        return [str(exact.numerator), str(exact.denominator)]

    def _add_up(self, buckets: Buckets, bucket_count: int) -> Totals:
        return add_up(self.partial, buckets, bucket_count, self._scales, self.aggregation)

    def _dimensions(self, cell: int) -> dict[str, str | None]:
        number, packed = int(self.partial.metric[cell]), self.partial.dims[cell]
        known = self._values.get((number, packed))
        if known is None:
            declared = sorted(self._entries[number].definition.dimensions, key=_utf8)
            values = read_dimensions(packed, len(declared))
            known = dict(zip(declared, values, strict=True))
            self._values[number, packed] = known
        return known

    def _filter(self) -> NDArray[np.bool_]:
        cells = range(len(self.partial.dims))
        filters = [(key, frozenset(wanted)) for key, wanted in self.question.filters]
        if not filters:
            return np.ones(len(cells), np.bool_)
        chosen = [
            all(self._dimensions(cell).get(key) in wanted for key, wanted in filters)
            for cell in cells
        ]
        return np.array(chosen, np.bool_)


def answer_usage(
    question: Question,
    entries: Sequence[MetricEntry],
    partial: PartialCells,
    context: AnswerContext,
) -> dict[str, Any]:
    """Return the result of a usage question.  `entries` are all versions of its metric.

    Raises MetricVersionsDiffer; BadRequest when the answer would be too large.
    """
    reckoning = Reckoning(question, entries, partial)
    groups, _ = reckoning.group(())
    total = reckoning.totals(groups, 1)
    amount, count = total.amounts[0], int(total.counts[0])
    series = reckoning.series(groups, 1) if question.edges else None
    return {
        "account": question.account,
        "metric": question.metric,
        "aggregation": reckoning.aggregation,
        "unit": reckoning.entry.definition.unit,
        "start": question.start,
        "end": question.end,
        "value": reckoning.text(amount, count),
        "fraction": reckoning.fraction(amount, count),
        "count": count,
        "groups": _groups(reckoning) if question.group_by else [],
        "series": [] if series is None else _points(reckoning, series, 0),
        "position": context.position,
        "newest_event": int(total.newest[0]) if count else None,
        "expired": question.start < context.horizon,
    }


def _groups(reckoning: Reckoning) -> list[dict[str, Any]]:
    """Return the groups in which there is something, in the order of their values."""
    question = reckoning.question
    groups, keys = reckoning.group(question.group_by)
    totals = reckoning.totals(groups, len(keys))
    series = reckoning.series(groups, len(keys)) if question.edges else None
    rows = []
    for place in sorted(range(len(keys)), key=lambda place: _order(keys[place])):
        amount, count = totals.amounts[place], int(totals.counts[place])
        if not count and not (reckoning.aggregation == "unique" and amount):
            continue
        row: dict[str, Any] = {
            "key": dict(zip(question.group_by, keys[place], strict=True)),
            "value": reckoning.text(amount, count),
            "count": count,
        }
        if series is not None:
            row["series"] = _points(reckoning, series, place)
        rows.append(row)
    return rows


def _points(reckoning: Reckoning, series: Totals, group: int) -> list[dict[str, Any]]:
    """Return the series of one group."""
    starts = reckoning.question.edges[:-1]
    first = group * len(starts)
    last = first + len(starts)
    rows = zip(starts, series.amounts[first:last], series.counts[first:last].tolist(), strict=True)
    return [
        {"start": start, "value": reckoning.text(amount, count), "count": count}
        for start, amount, count in rows
    ]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The usage of every account, in order: what the pages of an invoice run are cut from."""

    question: Question
    accounts: list[str]
    amounts: list[int]
    counts: NDArray[np.int64]
    text: _Text

    def rows(self, first: int, limit: int) -> list[dict[str, Any]]:
        """Return the rows of one page; those of some partitions only have their amounts, too."""
        last = first + limit
        counts = self.counts[first:last].tolist()
        rows = zip(self.accounts[first:last], self.amounts[first:last], counts, strict=True)
        found = [
            {"account": account, "value": self.text(amount, count), "count": count}
            for account, amount, count in rows
        ]
        if self.question.partitions is not None:  # who joins such rows puts them in order
            for row, amount in zip(found, self.amounts[first:last], strict=True):
                row["amount"] = str(amount)
        return found


def answer_accounts(
    question: Question, entries: Sequence[MetricEntry], partial: PartialCells
) -> Generator[None, None, Ranking]:
    """Return the usage of every account that has some, sorted as the question says.

    By usage means the greatest first, equal ones by account.  Yields between parts, each of which
    takes about half a microsecond an account.  Raises MetricVersionsDiffer.
    """
    reckoning = Reckoning(question, entries, partial)
    groups = np.where(reckoning.chosen, partial.account, -1).astype(np.int64)
    if question.partitions is not None:
        groups[~lie_in(partial.accounts, question.partitions)[partial.account]] = -1
    yield
    totals = reckoning.totals(groups, len(partial.accounts))
    yield
    has_usage = totals.counts > 0
    if reckoning.aggregation == "unique":
        has_usage |= np.array(totals.amounts, np.int64) > 0
    names = partial.accounts
    ranked = np.array(sorted(np.flatnonzero(has_usage).tolist(), key=names.__getitem__), np.int64)
    yield
    if question.sort == "usage":
        ranked = order_by_amount(reckoning.aggregation, totals, ranked)
        yield
    places = ranked.tolist()
    return Ranking(
        question,
        [names[place] for place in places],
        [totals.amounts[place] for place in places],
        totals.counts[ranked],
        reckoning.text,
    )


def _utf8(key: str) -> bytes:
    return key.encode()


def _order(key: Key) -> tuple[tuple[bool, str], ...]:
    """Order of groups: by value, events without the dimension first."""
    return tuple((value is not None, value or "") for value in key)

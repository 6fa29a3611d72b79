"""Joins the usage of all accounts from several nodes, each of which has some of the partitions.

An account lies in one partition, so nothing is added up: rows are put in order.  Amounts are whole
numbers in units of 10^-digits, so the order by usage is exact.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from meterd.core.questions.answers import Ranking
from meterd.core.questions.totals import Totals, order_by_amount


@dataclass(slots=True)
class Columns:
    """Rows of another node, as its pages came."""

    accounts: list[str] = field(default_factory=list)
    amounts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of a page that has amounts."""
        self.accounts += [row["account"] for row in rows]
        self.amounts += [int(row["amount"]) for row in rows]
        self.counts += [row["count"] for row in rows]


def join(own: Ranking, others: Sequence[Columns]) -> Generator[None, None, Ranking]:
    """Return all rows in the order that the question asks for.  Yields between parts."""
    accounts, amounts = list(own.accounts), list(own.amounts)
    counts = [own.counts]
    for columns in others:
        accounts += columns.accounts
        amounts += columns.amounts
        counts.append(np.array(columns.counts, np.int64))
        yield
    totals = Totals(np.concatenate(counts), amounts, np.zeros(len(amounts), np.int64))
    order = np.array(sorted(range(len(accounts)), key=accounts.__getitem__), np.int64)
    yield
    if own.question.sort == "usage":
        order = order_by_amount(own.text.aggregation, totals, order)
        yield
    places = order.tolist()
    return Ranking(
        replace(own.question, partitions=None),
        [accounts[place] for place in places],
        [amounts[place] for place in places],
        totals.counts[order],
        own.text,
    )

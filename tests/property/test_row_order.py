"""Rows of a segment are in the order of plain Python's sort, whatever they are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.core.kernels import segment_rows as kernels
from meterd.core.kernels.segment_rows import KEY, ROW_WORDS, TIMESTAMP

METRIC_NUMBERS = 1 << 16
spans = st.sampled_from([(0, 1), (-5, 5), (0, 10**15), (-(2**63), 2**63)])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 7, 200, 3 * kernels.LONG]),
    st.integers(1, 40),
    st.lists(st.integers(0, METRIC_NUMBERS - 1), min_size=1, max_size=3),
    spans,
    st.booleans(),
)
def test_rows_are_ordered_by_account_metric_and_time(seed, n, accounts, metrics, span, rising):
    chance = np.random.default_rng(seed)
    rank = chance.permutation(accounts).astype(np.int64)
    rows = np.zeros((n, ROW_WORDS), np.int64)
    # Most rows belong to the first account, so that its series are long.
    account = np.where(chance.random(n) < 0.8, 0, chance.integers(0, accounts, n))
    metric = chance.choice(np.array(metrics), n)
    rows[:, KEY] = account << 32 | metric << 16 | chance.integers(0, 3, n) << 8
    rows[:, TIMESTAMP] = chance.integers(*span, n)
    if rising:
        rows[:, TIMESTAMP].sort()
    pairs = [np.empty((n, 2), np.int64) for _ in range(2)]
    order = np.empty(n, np.int64)
    kernels.order_rows(
        rows,
        np.bincount(metric, minlength=METRIC_NUMBERS).astype(np.int64),
        rank,
        np.zeros(accounts + 1, np.int64),
        (*pairs, np.empty(kernels.DIGITS, np.int64)),
        order,
    )
    times = rows[:, TIMESTAMP].tolist()
    keys = list(zip(rank[account].tolist(), metric.tolist(), times, range(n), strict=True))
    assert order.tolist() == sorted(range(n), key=keys.__getitem__)


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=20))), max_size=5))
def test_accounts_are_ordered_by_partition_and_text(parts):
    """Parts that are sorted, as those of segments that are merged, and others."""
    for lists in (parts, [sorted(part) for part in parts]):
        accounts = [account for part in lists for account in part]
        text = np.frombuffer(b"".join(raw for _, raw in accounts) + bytes(8), np.uint8).copy()
        ends = np.cumsum([len(raw) for _, raw in accounts], dtype=np.int64)
        partition = np.array([number for number, _ in accounts], np.int64)
        order = np.arange(len(accounts))
        kernels.order_accounts(text, ends, partition, order, np.empty_like(order))
        assert order.tolist() == sorted(range(len(accounts)), key=accounts.__getitem__)

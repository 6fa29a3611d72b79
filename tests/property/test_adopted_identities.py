"""What the identities of a peer hold beyond those of its rows is what was erased there."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.adopting import identities
from meterd.core.kernels.tables import DAY_NS
from tests.property.test_identity_runs import entries
from tests.support.identities import run_of


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=1, max_size=20),
    st.integers(0, 10),
    st.integers(1, 500),
)
def test_beyond_is_what_is_held_and_not_known(sizes, pattern, day, compared):
    every = entries(len(sizes), sum(sizes))
    runs = np.split(every, np.cumsum(sizes)[:-1])
    rows = np.resize(pattern, len(every))
    known = [run_of(every[rows])] if rows.any() else []
    before, identities.COMPARED = identities.COMPARED, compared
    try:
        found = identities.beyond([run_of(run) for run in runs], known, (20_000 + day) * DAY_NS)
        got = np.concatenate(list(found))
    finally:
        identities.COMPARED = before
    expected = every[~rows & ((every[:, 1] & np.uint64(0xFFFF)) >= 20_000 + day)]
    assert sorted(got.tolist()) == sorted(expected.tolist())

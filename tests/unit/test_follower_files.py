"""Which log files followers that are behind may still need."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.housekeeping.follower_files import FILES_MAX, NOBODY_BEHIND, FollowerFiles

GROUPS = 3

logs = st.lists(st.lists(st.integers(0, GROUPS - 1), max_size=6), max_size=8)


@given(logs, st.lists(st.integers(0, 12), min_size=GROUPS, max_size=GROUPS), st.integers(0, 3))
def test_no_file_goes_that_holds_an_op_a_follower_lacks(
    files: list[list[int]], match: list[int], before: int
) -> None:
    """`files`: the groups of the ops that each file holds, after so many ops of each group."""
    last = np.full(GROUPS, before, np.uint64)
    found = FollowerFiles(last)
    lacking = [0] if any(index < before for index in match) else []
    for number, groups in enumerate(files, 5):
        for group in groups:
            last[group] += 1
            if last[group] > match[group]:
                lacking.append(number)
        found.rotated(number, last)
    expected = min(lacking, default=NOBODY_BEHIND)
    assert found.first_needed(np.array(match, np.uint64)) == expected


def test_memory_is_bounded() -> None:
    last = np.zeros(GROUPS, np.uint64)
    found = FollowerFiles(last)
    for number in range(1, FILES_MAX + 10):
        last[0] += 1
        found.rotated(number, last)
    nobody = np.full(GROUPS, NOBODY_BEHIND, np.uint64)
    assert found.first_needed(nobody) == NOBODY_BEHIND
    for match, first in ((5, 0), (20, 21), (FILES_MAX, FILES_MAX + 1)):
        behind = nobody.copy()
        behind[0] = match
        assert found.first_needed(behind) == first

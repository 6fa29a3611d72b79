"""Records and commits come by two ways: in whatever order, blocks are taken whole and in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.commit_queue import CommitQueue
from meterd.protocol.errors import InvariantViolation

FIRST = 7  # the log had a history


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_block_is_taken_as_soon_as_its_commit_and_its_records_are_here(sizes, random):
    blocks, sequence = [], FIRST
    for size in sizes:
        blocks.append([[number, 1, 0, 0] for number in range(sequence, sequence + size)])
        sequence += size
    records, commits = list(range(FIRST, sequence)), list(enumerate(blocks))
    queue: CommitQueue[str] = CommitQueue()
    here, told, taken = FIRST - 1, 0, 0
    while records or commits:
        if commits and (not records or random.random() < len(blocks) / (sequence - FIRST + 1)):
            number, located = commits.pop(0)
            queue.add_commit(located, [number])
            told += 1
        else:
            here = records.pop(0)
            queue.add_record(here, f"record {here}")
        while (block := queue.take()) is not None:
            assert block.end == [taken]
            assert [row for row, _ in block.records] == blocks[taken]
            assert [item for _, item in block.records] == [f"record {r[0]}" for r in blocks[taken]]
            taken += 1
        whole = sum(1 for located in blocks[:told] if located[-1][0] <= here)
        assert taken == whole
        waits = taken < len(blocks) and here >= blocks[taken][0][0]
        assert queue.newest == (here if waits else None)
    assert queue.empty and taken == len(blocks)


def test_what_does_not_follow_is_a_fault_and_no_wait():
    queue: CommitQueue[str] = CommitQueue()
    queue.add_record(FIRST, "")
    with pytest.raises(InvariantViolation, match="record 9 came after record 7"):
        queue.add_record(FIRST + 2, "")
    queue.add_commit([[FIRST, 1, 0, 0]], [])
    with pytest.raises(InvariantViolation, match="record 9 was committed after record 7"):
        queue.add_commit([[FIRST + 2, 1, 0, 0]], [])


def test_a_commit_of_records_from_before_the_first_is_a_fault():
    queue: CommitQueue[str] = CommitQueue()
    queue.add_record(FIRST, "")
    queue.add_commit([[FIRST - 1, 1, 0, 0], [FIRST, 1, 0, 0]], [])
    with pytest.raises(InvariantViolation, match="record 6 is committed but never came"):
        queue.take()

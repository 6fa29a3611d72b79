"""Every kind of file is known by its name, and a copy needs the fewest that hold everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.core.housekeeping import inventory
from meterd.core.housekeeping.inventory import Change
from meterd.protocol.log_format import full_name, open_name
from meterd.protocol.segment_format import SUFFIXES, SegmentName


def segment(*range_and_generation):
    return sorted(SegmentName(*range_and_generation).file(suffix) for suffix in SUFFIXES)


@pytest.mark.parametrize(
    ("name", "change", "folder"),
    [
        ("wal.log", Change.GROWING, "wal"),
        (full_name(7), Change.IMMUTABLE, "wal"),
        (full_name(7).replace(".log", ".idx"), Change.IMMUTABLE, "wal"),
        (open_name(7), Change.SCRATCH, ""),
        ("wal.spare", Change.SCRATCH, ""),
        ("checkpoint.bin", Change.REPLACED, "checkpoint"),
        ("checkpoint.prev.bin", Change.REPLACED, "checkpoint"),
        ("checkpoint.prev.bin.new", Change.SCRATCH, ""),
        ("checkpoint.bin.tmp", Change.SCRATCH, ""),
        ("ids-000000000001.run", Change.IMMUTABLE, "checkpoint"),
        (segment(1, 2)[0], Change.IMMUTABLE, "segments"),
        (SegmentName(1, 2, 3).file(".seg"), Change.IMMUTABLE, "segments"),
        ("metric_registry.bin", Change.REPLACED, "meta"),
        ("partition_map.bin", Change.REPLACED, "meta"),
        ("totals-000000000001-000000000002.tot", Change.REPLACED, "meta"),
        ("erased.bin", Change.REPLACED, "meta"),
        ("node.json", Change.REPLACED, "meta"),
        ("restored.json", Change.SCRATCH, ""),
        ("refused.log", Change.GROWING, "meta"),
        ("refused.1.log", Change.GROWING, "meta"),
        ("lock", Change.SCRATCH, ""),
        ("run", Change.SCRATCH, ""),
        ("something-new.bin", Change.REPLACED, "meta"),
    ],
)
def test_kinds(name, change, folder):
    assert inventory.kind_of(name) == (change, folder)


@given(
    st.integers(1, 12),
    st.sets(st.tuples(st.integers(1, 12), st.integers(0, 5)), max_size=8),
    st.sets(st.integers(1, 12)),
    st.integers(1, 13),
    st.integers(1, 13),
    st.integers(0, 12),
)
def test_what_is_needed_covers_every_log_file_once(full, ranges, gone, first_log, end_log, through):
    """Up to log file `through` totals files do, so no segment from before it reaches behind it."""
    names = [full_name(number) for number in range(1, full + 1) if number not in gone]
    for first, more in ranges:
        names += segment(first, first + more)
    needed = inventory.immutable_files(names, first_log, end_log, through)
    assert set(needed) <= set(names)
    segments = inventory.whole_segments(needed)
    logs = {inventory.log_number(name) for name in needed if name.endswith(".log")}
    for number in range(1, end_log):
        covered = any(one.first <= number <= one.last for one in segments)
        could = any(
            a <= number < a + more + 1 <= end_log and not a <= through < a + more
            for a, more in ranges
        )
        assert covered == could
        if full_name(number) in names:
            assert covered or number in logs
            assert number in logs or number < first_log
    assert all(one.last < end_log for one in segments) and all(n < end_log for n in logs)


def test_a_part_of_a_segment_is_no_segment():
    names = [full_name(1), *segment(1, 1)[:2]]
    assert inventory.immutable_files(names, 2, 3) == [full_name(1)]


def test_a_segment_within_another_is_superseded():
    names = [*segment(1, 1), *segment(2, 2), *segment(1, 2), *segment(3, 3), *segment(3, 3, 1)]
    assert inventory.whole_segments(names) == [SegmentName(1, 2), SegmentName(3, 3, 1)]
    # While the larger reaches behind the cut, the smaller ones are what counts.
    assert inventory.whole_segments(segment(1, 1)) == [SegmentName(1, 1)]
    assert inventory.immutable_files(names, 9, 2) == sorted(segment(1, 1))

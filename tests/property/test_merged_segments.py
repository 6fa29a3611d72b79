"""Merged segments answer exactly as their parts, whatever the events are."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.segment_merger import SegmentMerger
from meterd.core.segment_merging import NOTHING_EXPIRES
from meterd.protocol.limits import I64_MAX
from meterd.protocol.segment_format import SUFFIXES, SegmentName
from tests.property.test_segments import ACCOUNTS, TIMES, answers, events
from tests.support.log_directory import LogDirectory

logs = st.lists(
    st.lists(st.lists(events, min_size=1, max_size=8), max_size=4), min_size=2, max_size=5
)


def freely(done: float, moved: int) -> None:
    """A pace that never waits."""
    assert 0 <= done <= 1
    assert moved >= 0


def written_log(path: str, written) -> LogDirectory:
    """A directory with a segment for each list of records."""
    log = LogDirectory(Path(path))
    for records in written:
        for record in records:
            refused = {place for place, (_, is_refused) in enumerate(record) if is_refused}
            log.write([replace(event) for event, _ in record], refused)
        log.seal(segmented=True)
    return log


def remove(log: LogDirectory, names: list[SegmentName]) -> None:
    for name in names:
        for suffix in SUFFIXES:
            (log.path / name.file(suffix)).unlink()
        for number in range(name.first, name.last + 1):
            (log.path / f"wal-{number:020d}.log").unlink(missing_ok=True)
    log.files.refresh()


@settings(max_examples=60)
@given(
    logs,
    st.data(),
    st.sampled_from(ACCOUNTS),
    st.booleans(),
    st.tuples(TIMES | st.just(I64_MAX), TIMES | st.just(I64_MAX)).map(sorted),
    st.integers(1, 4),
)
def test_a_merged_segment_answers_as_its_parts_do(written, data, account, subtree, span, limit):
    with tempfile.TemporaryDirectory() as path:
        log = written_log(path, written)
        before = answers(log, account, subtree, tuple(span), limit)
        names = [SegmentName(number, number) for number in range(1, len(written) + 1)]
        while len(names) > 1:
            first = data.draw(st.integers(0, len(names) - 2))
            last = data.draw(st.integers(first + 2, len(names)))
            parts = names[first:last]
            merged = SegmentMerger(path).merge(parts, NOTHING_EXPIRES, freely)
            names[first:last] = [merged.name]
            log.files.refresh()
            assert [part.segment.name for part in log.view().parts[:-1]] == names
            assert answers(log, account, subtree, tuple(span), limit) == before
            remove(log, parts)
            assert answers(log, account, subtree, tuple(span), limit) == before

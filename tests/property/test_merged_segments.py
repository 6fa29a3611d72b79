"""Merged segments answer exactly as their parts, whatever the events are."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.files.segment_files import read_segment
from meterd.actors.housekeeping.segment_merger import SegmentMerger
from meterd.actors.questions import feed
from meterd.core.questions.question import Question
from meterd.core.segments.erased_runs import holds_erased
from meterd.core.state.erasures import none_erased
from meterd.protocol.limits import I64_MAX
from meterd.protocol.segment_format import SUFFIXES, SegmentName
from tests.property.test_segments import ACCOUNTS, EVER, TIMES, answers, events, pages
from tests.support.log_builder import LoggedEvent
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
            merged = SegmentMerger(path).merge(parts, None, freely)
            names[first:last] = [merged.name]
            log.files.refresh()
            assert [part.segment.name for part in log.view().parts[:-1]] == names
            assert answers(log, account, subtree, tuple(span), limit) == before
            remove(log, parts)
            assert answers(log, account, subtree, tuple(span), limit) == before


erasures = st.tuples(st.sampled_from(ACCOUNTS), st.booleans())


def is_below(account: str, erased: tuple[str, bool]) -> bool:
    return account == erased[0] or (erased[1] and account.startswith(f"{erased[0]}/"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(events, min_size=1, max_size=8) | erasures, max_size=4),
        min_size=1,
        max_size=4,
    ),
    st.data(),
    st.sampled_from(ACCOUNTS),
    st.tuples(TIMES | st.just(I64_MAX), TIMES | st.just(I64_MAX)).map(sorted),
)
def test_what_is_erased_leaves_the_segments_and_nothing_else_does(written, data, account, span):
    with tempfile.TemporaryDirectory() as path:
        log, left = LogDirectory(Path(path)), []
        for steps in written:
            for step in steps:
                if isinstance(step, tuple):
                    log.erase(*step)
                    left = [event for event in left if not is_below(event.account, step)]
                    continue
                refused = {place for place, (_, is_refused) in enumerate(step) if is_refused}
                absent = data.draw(st.sampled_from([False, False, True]))
                placed = log.write([replace(event) for event, _ in step], refused, absent)
                rows = log.refused.get(log.builder.file_number, set())
                left += [place.event for place in placed if place.row not in rows]
            log.seal(segmented=True)
        before = answers(log, account, True, tuple(span), 3)
        names = [SegmentName(number, number) for number in range(1, len(written) + 1)]
        merger, done = SegmentMerger(path), []
        fewest = 1 if log.erasures else 2
        while len(names) >= fewest:
            parts = names[: data.draw(st.integers(fewest, len(names)))]
            merged = merger.merge(parts, log.erasures, freely)
            assert not holds_erased(read_segment(path, merged.name), log.erasures)
            names = names[len(parts) :]
            done.append(merged.name)
            log.files.refresh()
            assert answers(log, account, True, tuple(span), 3) == before
            remove(log, parts)
            assert answers(log, account, True, tuple(span), 3) == before
        assert [part.segment.name for part in log.view().parts[:-1]] == done + names
        # And nobody needs to know any more what was erased.
        log.erasures = none_erased(log.files.identity_key)
        found = pages(log, Question("feed", limit=5, **EVER), feed.read_feed)
        wanted = [(event.account, event.id, event.timestamp) for event in left]
        assert [(one["account"], one["id"], one["timestamp"]) for one in found] == wanted
        for name in done:
            header = read_segment(path, name).header
            accounts = {event.account for event in left}
            assert header.account_count <= len(accounts)


def test_what_came_after_an_erasure_stays_beside_slices_that_no_group_has_taken():
    account, made = ACCOUNTS[0], 0

    def event() -> LoggedEvent:
        nonlocal made
        made += 1
        return LoggedEvent(account, f"id-{made}", 1, 1, 1_000 + made)

    with tempfile.TemporaryDirectory() as path:
        log = LogDirectory(Path(path))
        log.write([event()])
        log.erase(account)
        kept = event()
        log.write([kept])
        log.write([event()], absent=True)  # its slice has no index
        last = event()
        log.write([last])
        log.seal(segmented=True)
        merged = SegmentMerger(path).merge([SegmentName(1, 1)], log.erasures, freely)
        log.files.refresh()
        remove(log, [SegmentName(1, 1)])
        assert not holds_erased(read_segment(path, merged.name), log.erasures)
        found = pages(log, Question("feed", limit=5, **EVER), feed.read_feed)
        assert [one["id"] for one in found] == [kept.id, last.id]

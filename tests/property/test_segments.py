"""Answers from a segment are those from its log file, whatever the events are."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.actors.questions import feed, reading
from meterd.core.questions.question import Question
from meterd.protocol.limits import I64_MAX, I64_MIN
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory, finish
from tests.support.segments import EVER, registry_of

ACCOUNTS = ("a", "a/b", "a/b/c", "a-b", "a0", "ab", "z", "ä/ö", "x" * 128)
TIMES = st.sampled_from([-(2**63), -1, 0, 1, 10**9, 10**18, 10**18 + 1, 2**63 - 2])
METRICS = 40

ids = st.uuids().map(str) | st.text(min_size=1, max_size=4) | st.just("i" * 128)
events = st.tuples(
    st.builds(
        LoggedEvent,
        st.sampled_from(ACCOUNTS),
        ids.filter(lambda text: len(text.encode()) <= 128),
        st.sampled_from([1, 2, METRICS]),
        st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3).map(lambda value: value * 1_000),
        TIMES | st.integers(-5, 5),
        st.sampled_from(["none", "add", "remove"]),
        st.dictionaries(
            st.sampled_from(["region", "k"]), st.sampled_from(["", "eu", "ü" * 127]), max_size=2
        ),
    ),
    st.booleans(),
)
logs = st.lists(
    st.lists(st.lists(events, min_size=1, max_size=8), max_size=4), min_size=1, max_size=3
)
REGISTRY = registry_of(METRICS)


def answers(log: LogDirectory, account: str, subtree: bool, span: tuple[int, int], limit: int):
    """Everything that can be asked, as plain values."""
    start, end = span
    edges = tuple(sorted({start, (start + end) // 2, end}))
    found = []
    for number in (1, 2, METRICS):
        base = Question("usage", account, subtree, f"m{number}", start, end)
        for question in (
            base,
            replace(base, group_by=("region",)),
            replace(base, edges=edges if len(edges) > 1 else ()),
            replace(base, kind="accounts", account="", subtree=False),
        ):
            partial = finish(reading.read_cells(log.view(), question, REGISTRY))
            found.append(cells_of(partial))
    for metric in ("", "m2"):
        question = Question("events", account, subtree, metric, start, end, limit=limit)
        found.append(pages(log, question, reading.read_events))
    for name in (account, ""):
        for metric in ("", "m2"):
            question = Question("feed", name, subtree and bool(name), metric, limit=limit, **EVER)
            found.append(pages(log, question, feed.read_feed))
    return found


def cells_of(partial):
    names = partial.accounts or [""]
    return {
        (names[account], number, window, dims): cell[2:13].tolist()
        for account, number, window, dims, cell in zip(
            partial.account.tolist(),
            partial.metric.tolist(),
            partial.window.tolist(),
            partial.dims,
            partial.cells,
            strict=True,
        )
        if cell[2]
    }


def pages(log: LogDirectory, question: Question, read):
    """The events of all pages, each event whole."""
    listed = []
    while True:
        page = finish(read(log.view(), question, REGISTRY, I64_MIN))
        listed += page["events"]
        if page["next"] is None or page["next"] == question.after:
            return listed
        question = replace(question, after=page["next"])


@settings(max_examples=60, deadline=None)
@given(
    logs,
    st.sampled_from(ACCOUNTS),
    st.booleans(),
    st.tuples(TIMES | st.just(I64_MAX), TIMES | st.just(I64_MAX)).map(sorted),
    st.integers(1, 4),
)
def test_a_segment_answers_as_its_log_file_does(written, account, subtree, span, limit):
    with tempfile.TemporaryDirectory() as path:
        log = LogDirectory(Path(path))
        log.builder.noops = True
        for records in written:
            for record in records:
                refused = {place for place, (_, is_refused) in enumerate(record) if is_refused}
                log.write([replace(event) for event, _ in record], refused)
            log.seal(segmented=False)
        before = answers(log, account, subtree, tuple(span), limit)
        for number in range(1, len(written) + 1):
            log.make_segment(number)
        assert [part.segment is None for part in log.view().parts[:-1]] == [False] * len(written)
        assert answers(log, account, subtree, tuple(span), limit) == before
        for number in range(1, len(written) + 1):
            (log.path / f"wal-{number:020d}.log").unlink()
        log.files.refresh()
        assert answers(log, account, subtree, tuple(span), limit) == before


@settings(max_examples=30, deadline=None)
@given(logs, st.integers(1, 3), st.data())
def test_a_feed_goes_on_when_its_files_become_segments(written, limit, data):
    with tempfile.TemporaryDirectory() as path:
        log = LogDirectory(Path(path))
        log.builder.noops = True
        wanted = []
        for records in written:
            for record in records:
                made = [replace(event) for event, _ in record]
                refused = {place for place, (_, is_refused) in enumerate(record) if is_refused}
                kept = {id(event) for place, event in enumerate(made) if place not in refused}
                placed = log.write(made, refused)
                wanted += [place.event.id for place in placed if id(place.event) in kept]
            log.seal(segmented=False)
        waiting = list(range(1, len(written) + 1))
        question, seen = Question("feed", limit=limit, **EVER), []
        while True:
            page = finish(feed.read_feed(log.view(), question, REGISTRY, I64_MIN))
            seen += [event["id"] for event in page["events"]]
            if page["next"] == question.after:
                break
            question = replace(question, after=page["next"])
            if waiting and data.draw(st.booleans()):
                log.make_segment(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
        assert seen == wanted

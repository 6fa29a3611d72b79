"""Makes a segment as the retention sweeper does, and asks it everything that it can be asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from meterd.actors.files.segment_files import read_segment
from meterd.actors.housekeeping.segment_merger import SegmentMerger
from meterd.actors.questions import feed, reading
from meterd.core.questions.question import Question
from meterd.core.segments.erased_runs import holds_erased
from meterd.protocol.limits import I64_MAX, I64_MIN
from meterd.protocol.segment_format import SegmentName
from tests.support.log_builder import LoggedEvent
from tests.support.log_directory import LogDirectory, finish
from tests.support.segments import registry_of

UUID = "01234567-89ab-cdef-0123-456789abcdef"


def every_segment(directory: str) -> None:
    """Use every kernel that segments have, on a few events."""
    log, registry = LogDirectory(Path(directory)), registry_of(2)
    for number in range(3):
        region = {"region": f"r{number}"}
        log.write(
            [
                LoggedEvent("a", UUID, 1, number, number, "none", region),
                LoggedEvent("a/b", f"text-{number}", 2, number, number),
            ],
            {0} if number else set(),
        )
    log.seal(segmented=True)
    view = log.view()
    base = Question("usage", "a", True, "m1", I64_MIN, I64_MAX)
    for question in (
        base,
        replace(base, group_by=("region",)),
        replace(base, subtree=False, edges=(I64_MIN, 0, I64_MAX)),
        Question("accounts", metric="m2", start=I64_MIN, end=I64_MAX),
    ):
        finish(reading.read_cells(view, question, registry))
    listing = Question("events", "a", True, "", I64_MIN, I64_MAX, limit=10)
    assert len(finish(reading.read_events(view, listing, registry, I64_MIN))["events"]) == 4
    for account in ("", "a"):
        question = Question("feed", account, start=I64_MIN, end=I64_MAX, limit=10)
        finish(feed.read_feed(view, question, registry, I64_MIN))
    log.write([LoggedEvent("b", "text", 1, 1, 1)])
    log.seal(segmented=True)
    names = [SegmentName(1, 1), SegmentName(2, 2)]
    log.erase("a/b")
    merged = SegmentMerger(directory).merge(names, log.erasures, lambda done, moved: None)
    assert (merged.rows, merged.erased) == (2, 3)
    assert not holds_erased(read_segment(directory, merged.name), log.erasures)
